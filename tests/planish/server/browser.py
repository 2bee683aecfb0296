"""A headless Chromium, driven through chromedriver's HTTP protocol; nothing else is needed.

Source: https://www.w3.org/TR/webdriver2/
"""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    " disable-component-update disable-sync disable-dev-shm-usage force-color-profile=srgb"
).split()
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Shift": "\ue008"}
PATIENCE = 60.0


class Browser:
    """One window, from `with` to its end."""

    def __init__(self, profile: Path):
        self.profile = profile

    def __enter__(self) -> Browser:
        assert CHROMIUM and DRIVER
        self.process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                break
        self.http = httpx2.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=PATIENCE)
        flags = [f"--{flag}" for flag in (*FLAGS, f"user-data-dir={self.profile}")]
        options = {"binary": CHROMIUM, "args": flags}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.at = ""
        session = self.do("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.at = f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.do("DELETE", "")
        finally:
            self.http.close()
            self.process.terminate()
            self.process.wait(PATIENCE)
            self.process.stdout.close()

    def do(self, method: str, path: str, **given: Any) -> Any:
        body = given if method == "POST" else None
        found = self.http.request(method, self.at + path, json=body).json()["value"]
        assert not (isinstance(found, dict) and "stacktrace" in found), found
        return found

    def open(self, url: str) -> None:
        self.origin = "/".join(url.split("/")[:3])
        self.do("POST", "/url", url=url)

    def run(self, script: str, *given: Any) -> Any:
        """The value of a JavaScript expression."""
        return self.do("POST", "/execute/sync", script=f"return {script}", args=list(given))

    def type(self, text: str, *more: str) -> None:
        """Keys to what has the focus."""
        element = self.run("document.activeElement")[ELEMENT]
        keys = text + "".join(KEYS[name] for name in more)
        self.do("POST", f"/element/{element}/value", text=keys)

    def click(self, selector: str) -> None:
        found = self.do("POST", "/element", using="css selector", value=selector)
        self.do("POST", f"/element/{found[ELEMENT]}/click")

    def text(self, selector: str) -> str:
        """The text of the last element of a kind; empty if there is none."""
        script = "[...document.querySelectorAll(arguments[0])].at(-1)?.textContent ?? ''"
        return self.run(script, selector)

    def until(self, happened: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        while not (found := happened()):
            assert time.perf_counter() - start < PATIENCE, "did not happen"
            time.sleep(0.05)
        return found

    def problems(self) -> list[str]:
        """What the console says that is worse than information, but for answers that a page
        before this one had not waited for."""
        lines = self.do("POST", "/se/log", type="browser")
        found = [line["message"] for line in lines if line["level"] not in ("INFO", "DEBUG")]
        return [one for one in found if not one.startswith("http://") or self.origin in one]

    def emulate(self, width: int, dark: bool) -> None:
        """A window of a width, and the reader's theme."""
        media = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        for cmd, params in {
            "Emulation.setEmulatedMedia": {"features": media},
            "Emulation.setDeviceMetricsOverride": {
                "width": width,
                "height": 760,
                "deviceScaleFactor": 1,
                "mobile": False,
            },
        }.items():
            self.do("POST", "/goog/cdp/execute", cmd=cmd, params=params)

    def shoot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.do("GET", "/screenshot")))
