"""A real server on the loopback, in a thread of the test."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai

from planish.openai.served import Served
from planish.reference.files.load import open_checkpoint
from planish.reference.text.chat_template import load_chat_template
from planish.reference.text.requests import Session
from planish.reference.text.tokenizer import load_tokenizer
from planish.server.process import Process, listen, url_of
from planish.server.service import Service
from planish.server.settings import Settings

TEMPLATE = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% endif %}"""
PATIENCE = 60.0  # seconds for what should take milliseconds, where others use the machine


def describe(directory: Path, template: Path | None = None, **changes: Any) -> Served:
    """What the protocol knows of a model directory."""
    config = open_checkpoint(directory).config
    given = {
        "name": "tiny",
        "config": config,
        "tokenizer": load_tokenizer(directory, config),
        "template": None if template is None else load_chat_template(directory, template),
        "context": config.max_positions,
        "created": 1,
        "fingerprint": "fp_test",
        "max_tokens": 16,
    }
    return Served(**{**given, **changes})


class Serving:
    """A server from `with` to its end; `session` is what it steps."""

    def __init__(
        self, open_session: Callable[[], Session], served: Served, settings: Settings | None = None
    ):
        self.lines: list[str] = []
        self.session: Any = None
        self.open_session, self.served = open_session, served
        self.listener = listen("127.0.0.1", 0)
        self.url = url_of(self.listener)
        self.port = self.listener.getsockname()[1]
        self.settings = settings or Settings(metrics=True)
        self.started = threading.Event()
        self.code: int | None = None
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.service = Service(settings=self.settings, open=self._open, tell=self.lines.append)
        self.process = Process(service=self.service, listener=self.listener)
        self.loop = asyncio.get_running_loop()
        self.started.set()
        self.code = await self.process.run()

    def _open(self) -> tuple[Session, Served]:
        self.session = self.open_session()
        return self.session, replace(self.served, context=self.session.context)

    def __enter__(self) -> Serving:
        self.thread.start()
        assert self.started.wait(PATIENCE)
        self.until(lambda: self.service.health != "loading")
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        assert self.service.close(PATIENCE)

    def stop(self) -> None:
        """As a signal does."""
        if self.thread.is_alive():
            self.loop.call_soon_threadsafe(self.process.stop)
            self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def until(self, happened: Callable[[], object]) -> float:
        """Wait for what happens in the server's threads; returns how long it took."""
        start = time.perf_counter()
        while not happened():
            assert time.perf_counter() - start < PATIENCE, "did not happen"
            time.sleep(0.005)
        return time.perf_counter() - start

    def until_idle(self) -> float:
        """Wait until no request is computed or queued."""
        runner = self.service.runner
        return self.until(
            lambda: not self.service.exchanges and not runner.unfinished and self.session.is_idle
        )

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def http(self, **given: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, **given)

    def raw(self, sent: bytes, seconds: float = PATIENCE) -> bytes:
        """What the server answers to these bytes until it closes the connection."""
        with self.connect(seconds) as connection:
            connection.sendall(sent)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def connect(self, seconds: float = PATIENCE) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=seconds)
