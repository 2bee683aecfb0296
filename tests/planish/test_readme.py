"""What the README tells people to type works, word for word."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("planish ")]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of its own for what the README writes to /tmp."""
    return tmp_path_factory.mktemp("readme")


def run(command: str, elsewhere: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command.replace("/tmp/", f"{elsewhere}/"))
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )


@pytest.mark.whole
@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_works(command: str, elsewhere: Path) -> None:
    first = commands()[0]
    if command != first and not (elsewhere / "pocket-w8a8").exists():
        run(first, elsewhere)  # the others read what it writes, and another process may run it
    done = run(command, elsewhere)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.whole
def test_the_python_of_the_readme_works(elsewhere: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    command = [sys.executable, "-c", program.replace("/tmp/", f"{elsewhere}/")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, len(done.stdout) > 20) == (0, True), done.stderr


def test_the_readme_shows_every_verb() -> None:
    verbs = {command.split()[1] for command in commands()}
    assert verbs == set("quantize generate perplexity compare inspect logits bench".split())


def test_the_readme_holds_no_placeholder() -> None:
    assert not re.search(r"@[A-Z]+@|TODO|FIXME", README)


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_of_the_readme_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
