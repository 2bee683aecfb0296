"""Killed, interrupted or out of space in the middle of writing: the old state or the new one.

A driver runs the command in a process of its own and stops half way through the weights file,
says so on stdout, and waits for the signal that the test then sends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STOPPED_HALF_WAY = """
import signal, sys
from pathlib import Path
from planish.reference.files import partial, writer as reference_writer
from planish.command import main

whole = reference_writer.write_tensors

def half(path, tensors, padded):
    whole(path, tensors, padded)
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    print("half", flush=True)
    signal.pause()

reference_writer.write_tensors = half
main(["planish", *sys.argv[1:]])
"""

LIMITED = """
import resource, sys
from planish.command import main
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
main(["planish", *sys.argv[1:]])
"""


def words(model: Path, out: Path, recipe: str = "W8A16") -> list[str]:
    quantize = ["quantize", "--model", str(model), "--out", str(out), "--recipe", recipe]
    return [*quantize, "--overwrite"]


def stop_half_way(model: Path, out: Path, number: signal.Signals) -> tuple[int, str]:
    """Exit code and stderr of a quantization that got a signal in the middle of its writing."""
    command = [sys.executable, "-c", STOPPED_HALF_WAY, *words(model, out)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(number)
        err = process.communicate(timeout=60)[1]
    return process.returncode, err


@pytest.mark.matrix(3)
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGKILL, -9, "")],
)
def test_a_signal_while_writing_leaves_no_target(planish, tiny_llama, tmp_path, number, code, said):
    kept = f"{tmp_path / 'q.partial'} keeps 2 finished pieces; --resume goes on after them\n"
    said = said if number == signal.SIGKILL else kept + said
    assert stop_half_way(tiny_llama, tmp_path / "q", number) == (code, said)
    assert not (tmp_path / "q").exists()
    assert planish("inspect", "--model", tmp_path / "q").refused("is not a directory with a model")
    left = list(tmp_path.iterdir())
    assert len(left) == 1 + (number == signal.SIGKILL)
    for path in left:  # what --resume needs, and what nobody can clean up; it looks unfinished
        assert path.name.startswith((".q.tmp-", "q.partial"))
        assert planish("inspect", "--model", path).refused("config.json", "no such file")


@pytest.mark.matrix(3)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_overwriting_keeps_the_old_model(planish, tiny_llama, tmp_path, number):
    out = tmp_path / "q"
    assert planish(*words(tiny_llama, out, "W4A16")).code == 0
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    stop_half_way(tiny_llama, out, number)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert "recipe W4A16" in planish("inspect", "--model", out).out


def test_after_a_kill_the_same_command_with_resume_succeeds(planish, tiny_llama, tmp_path):
    stop_half_way(tiny_llama, tmp_path / "q", signal.SIGKILL)
    again = planish(*words(tiny_llama, tmp_path / "q"))
    assert again.refused("q.partial", "2 finished pieces of an earlier run", "--resume")
    assert planish(*words(tiny_llama, tmp_path / "q"), "--resume").code == 0
    assert planish("inspect", "--model", tmp_path / "q").code == 0
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".q.tmp-")}
    assert left == {"q"}


def test_a_file_too_large_for_its_limit_is_an_error_and_keeps_the_blocks(tiny_llama, tmp_path):
    command = [sys.executable, "-c", LIMITED, *words(tiny_llama, tmp_path / "q")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    kept = f"{tmp_path / 'q.partial'} keeps 2 finished pieces; --resume goes on after them\n"
    assert done.stderr == kept + f"error: {tmp_path / 'q'}: cannot be written: File too large\n"
    assert [path.name for path in tmp_path.iterdir()] == ["q.partial"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where one can be mounted."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(where)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_on_a_full_disk_finished_blocks_are_kept_and_a_larger_one_takes_the_rest(
    planish, tiny_llama, small_disk, tmp_path
):
    result = planish(*words(tiny_llama, small_disk / "q"))
    assert result.code == 2 and "cannot be written: No space left on device" in result.err
    assert "q.partial keeps 1 finished piece; --resume" in result.err
    assert [path.name for path in small_disk.iterdir()] == ["q.partial"]
    subprocess.run(["mount", "-o", "remount,size=1M", str(small_disk)], check=True)
    assert planish(*words(tiny_llama, small_disk / "q"), "--resume").code == 0
    assert planish(*words(tiny_llama, tmp_path / "q")).code == 0
    found, expected = (
        {file.name: file.read_bytes() for file in (where / "q").iterdir()}
        for where in (small_disk, tmp_path)
    )
    assert found == expected


def test_logits_on_a_full_disk_leave_nothing(planish, tiny_llama, small_disk):
    tokens = ",".join(["1"] * 128)
    where = ("--tokens", tokens, "--out", small_disk / "x.npy", "--engine", "reference")
    result = planish("logits", "--model", tiny_llama, *where)
    assert result.refused("x.npy", "No space left on device")
    assert list(small_disk.iterdir()) == []
