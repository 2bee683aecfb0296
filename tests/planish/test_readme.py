"""What the README tells people to type works, word for word, and prints what it shows."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from planish.command import VERBS
from tests.planish.tables import assert_same_row, rows_in

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("planish ")]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of its own for what the README writes to /tmp."""
    return tmp_path_factory.mktemp("readme")


def words_of(command: str, elsewhere: Path) -> list[str]:
    """A command's words, when everything that it reads exists: other processes may have run those
    before it."""
    model = re.search(r"--model /tmp/(\S+)", command)
    if model and not (elsewhere / model[1]).exists():
        writers = [line for line in commands() if f"--out /tmp/{model[1]} " in line]
        assert run(writers[0], elsewhere).returncode == 0
    words = shlex.split(command.replace("/tmp/", f"{elsewhere}/"))
    if words[1] == "quantize":
        words.append("--overwrite")
    return [sys.executable, "-m", *words]


def run(command: str, elsewhere: Path) -> subprocess.CompletedProcess[str]:
    words = words_of(command, elsewhere)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900)


def test_what_is_shown_belongs_to_the_first_command_of_its_verb() -> None:
    assert [command.split()[1] for command in commands()][:4] == SHOWN_AFTER
    assert len(blocks("text")) == 2


SHOWN_AFTER = ["quantize", "generate", "quality", "quantize"]
SHOWN = dict(zip(("generate", "quality"), blocks("text"), strict=True))
VERDICT = r"AGREE: \d+ checks on \d+ levels"


ENDLESS = [command for command in commands() if command.startswith("planish serve ")]


@pytest.mark.whole
@pytest.mark.parametrize("command", ENDLESS)
def test_the_readme_asks_its_server(command: str, elsewhere: Path) -> None:
    """serve, until curl has its answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (given,) = re.findall("--port ([0-9]+)", command)
    (asked,) = [line for line in README.splitlines() if line.startswith("curl ")]
    words = words_of(command.replace(given, port), elsewhere)
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            said = next(line for line in server.stderr if line.startswith(("ready", "error")))
            assert said.startswith("ready"), said
            answer = subprocess.run(
                shlex.split(asked.replace(given, port)), capture_output=True, timeout=300
            )
        finally:
            server.terminate()
    body = json.loads(answer.stdout)
    assert body["choices"][0]["text"]
    assert body["usage"]["prompt_tokens"] > 0


@pytest.mark.whole
@pytest.mark.parametrize("command", [each for each in commands() if each not in ENDLESS])
def test_every_command_of_the_readme_works(command: str, elsewhere: Path) -> None:
    done = run(command, elsewhere)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    verb = command.split()[1]
    if command == next(line for line in commands() if line.split()[1] == verb):
        compare_shown(verb, done.stdout)


def compare_shown(verb: str, fresh: str) -> None:
    """generate's text to the letter; tables by their numbers; compare's verdict."""
    shown = SHOWN.get(verb, "")
    if verb == "generate":
        assert fresh.strip() == shown.strip()
    if verb == "quality":
        assert fresh.splitlines()[0] == shown.splitlines()[0]
        assert list(rows_in(fresh)) == list(rows_in(shown))
        for recipe, numbers in rows_in(fresh).items():
            assert_same_row(recipe, rows_in(shown)[recipe], numbers)
    if verb == "compare":
        assert re.search(VERDICT, fresh)
        assert re.search(VERDICT, README)


@pytest.mark.whole
def test_the_python_of_the_readme_works(elsewhere: Path) -> None:
    (program,) = blocks("python")
    command = [sys.executable, "-c", program.replace("/tmp/", f"{elsewhere}/")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert (done.returncode, len(done.stdout) > 20) == (0, True), done.stderr


def test_the_readme_shows_and_lists_every_verb() -> None:
    assert {command.split()[1] for command in commands()} == set(VERBS)
    for verb in VERBS:
        assert f"\n| `{verb}` | " in README


def test_the_readme_is_short_and_holds_no_placeholder() -> None:
    assert len(README.splitlines()) <= 200
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", README)
