"""Stopped anywhere and resumed: the same bytes as without a stop. Anything else is refused.

A driver runs the command in a process of its own and kills it with SIGKILL at one point.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.safetensors import TensorEntry
from planish.reference.quantize.resume import hash_tensor

DRIVER = """
import os, signal, sys
from planish.command import main
from planish.reference.files import partial, writer
from planish.reference.quantize import methods
from planish.reference.quantize.methods.rtn import quantize_block

def fed_by_quantized(job, block):
    assert len(job.inputs) == len(job.targets)
    shift = float(sum(abs(x).sum() for x in job.inputs))
    part = "q"
    import dataclasses, numpy as np
    q = dataclasses.replace(block.q, weight=block.q.weight * np.float32(1 + shift % 0.1))
    return quantize_block(job, dataclasses.replace(block, q=q))

methods.METHODS["fed"] = methods.Method(step=fed_by_quantized, calibrates=True, sequential=True)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

point, words = sys.argv[1], sys.argv[2:]
save, put = partial.Partial.save, partial.Partial._put
if point.startswith("after ") and "rename" not in point:
    def saved(self, name, *rest):
        save(self, name, *rest)
        if name == point.removeprefix("after "):
            die()
    partial.Partial.save = saved
elif point.startswith("within ") and "output" not in point:
    def cut(self, hidden, name):
        if name == point.removeprefix("within ") + ".safetensors":
            data = hidden.read_bytes()
            hidden.write_bytes(data[: len(data) // 2])
            die()
        put(self, hidden, name)
    partial.Partial._put = cut
elif point == "within the output":
    writer.write_tensors = die
elif point == "before the rename":
    writer.put_directory = die
elif point == "after the rename":
    real = writer.put_directory
    def both(*given):
        real(*given)
        die()
    writer.put_directory = both
main(["planish", *words])
"""
LAYERS = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.models import make_llama

    return make_llama(tmp_path_factory.mktemp("resume"), num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("Words to calibrate on, a few. " * 20, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def command(model, text):
    """The words of a quantization to `out`."""

    def words(out: Path, *more: object, recipe: str = "W8A8") -> list[str]:
        where = ("quantize", "--model", model, "--out", out, "--recipe", recipe)
        short = ("--calibration", text, "--samples", 3, "--sequence_length", 32)
        return [*map(str, (*where, *short, "--engine", "reference", *more))]

    return words


def run_until(point: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DRIVER, point, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def snapshot(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


POINTS = [
    ("after block-00000", "--alpha 0.5", 1),
    ("within block-00001", "--method fed", 1),
    ("after block-00001", "--method fed", 2),
    ("after alphas", "--alpha search", 1),
    ("after block-00001", "--method gptq", 2),
    ("after block-00000", "--recipe W4A16 --method awq+gptq", 1),
    ("after block-00000", "--alpha search_per_block", 2),
    ("within the output", "--method fed", 3),
    ("before the rename", "--method fed", 3),
]


@pytest.mark.matrix(9)
@pytest.mark.parametrize(("point", "more", "pieces"), POINTS)
def test_a_killed_run_resumes_to_the_same_bytes(command, tmp_path, point, more, pieces):
    whole = run_until("never", command(tmp_path / "whole", *more.split()))
    assert whole.returncode == 0, whole.stderr
    words = command(tmp_path / "q", *more.split())
    assert run_until(point, words).returncode == -signal.SIGKILL
    assert not (tmp_path / "q").exists()
    assert not (tmp_path / "q.partial" / "config.json").exists()
    again = run_until("never", words)
    assert again.returncode == 2 and "q.partial" in again.stderr and "--resume" in again.stderr
    resumed = run_until("never", [*words, "--resume"])
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on after {pieces} finished piece" in resumed.stderr
    assert snapshot(tmp_path / "q") == snapshot(tmp_path / "whole")
    assert not (tmp_path / "q.partial").exists()


@pytest.mark.whole
def test_killed_twice_it_goes_on_twice(command, tmp_path):
    words = command(tmp_path / "q", "--method", "fed")
    run_until("never", command(tmp_path / "whole", "--method", "fed"))
    for point in ("after block-00000", "within block-00002"):
        assert run_until(point, [*words, "--resume"]).returncode == -signal.SIGKILL
    assert run_until("never", [*words, "--resume"]).returncode == 0
    assert snapshot(tmp_path / "q") == snapshot(tmp_path / "whole")


def test_killed_after_the_rename_the_model_is_complete(command, planish, tmp_path):
    assert run_until("after the rename", command(tmp_path / "q")).returncode == -signal.SIGKILL
    assert planish("inspect", "--model", tmp_path / "q").code == 0


@pytest.fixture(scope="module")
def killed(command, tmp_path_factory):
    """What a run leaves that was killed when its first block was finished."""
    out = tmp_path_factory.mktemp("killed") / "q"
    assert run_until("after block-00000", command(out)).returncode == -signal.SIGKILL
    return out.with_name("q.partial")


@pytest.fixture
def stopped(command, killed, tmp_path):
    """A run with one finished block; its words and its directory."""
    shutil.copytree(killed, tmp_path / "q.partial")
    return command(tmp_path / "q"), tmp_path / "q.partial"


@pytest.mark.matrix(4)
@pytest.mark.parametrize(
    ("changes", "name", "values"),
    [
        ({"--recipe": "O2"}, "recipe.name", ("W8A8", "O2")),
        ({"--samples": "2"}, "calibration.samples", ("3", "2")),
        ({"--layout": "canonical"}, "layout", ("tiles", "canonical")),
        ({"--alpha": "0.7"}, "recipe.smoothing.alpha", ("0.5", "0.7")),
    ],
)
def test_other_flags_are_refused_with_both_values(planish, stopped, changes, name, values):
    words, partial = stopped
    before = snapshot(partial)
    given = [word for pair in changes.items() for word in pair]
    result = planish(*words, "--resume", *given)
    assert result.code == 2, result
    line = result.err.splitlines()[-1]
    assert line.startswith(f"error: {partial}: {name}: was begun with another value"), line
    assert all(value in line for value in values), line
    assert snapshot(partial) == before


def test_another_model_is_refused_with_both_names(planish, stopped, make_llama):
    words, _ = stopped
    other = make_llama(name="other", num_hidden_layers=LAYERS, seed=1)
    words[words.index("--model") + 1] = str(other)
    line = planish(*words, "--resume").err.splitlines()[-1]
    assert "model: was begun with another value" in line
    assert "tiny (" in line and "other (" in line


def test_a_model_is_what_its_files_say_and_not_when_they_were_written(planish, stopped, model):
    words, _ = stopped
    file = model / "model.safetensors"
    before = file.stat()
    try:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
        assert planish(*words, "--resume").code == 0
    finally:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_model_of_the_same_name_and_times_with_another_weight_is_refused(
    planish, stopped, model, tmp_path
):
    words, _ = stopped
    other = tmp_path / "elsewhere" / model.name
    shutil.copytree(model, other)
    file = other / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1  # one bit of the last weight
    file.write_bytes(data)
    os.utime(file, ns=(0, (model / "model.safetensors").stat().st_mtime_ns))
    words[words.index("--model") + 1] = str(other)
    result = planish(*words, "--resume")
    assert result.refused("q.partial: model: was begun with another value"), result


def test_of_a_large_tensor_every_part_counts(tmp_path):
    data = np.zeros(1 << 20, np.uint8)
    entry = TensorEntry(tmp_path, "U8", data.shape, 0, data.size, data)
    plain, hashes = hash_tensor(entry), set()
    for part in np.split(data, 16):
        part += 1
        hashes.add(hash_tensor(entry))
        part -= 1
    assert plain == hash_tensor(entry) and plain not in hashes and len(hashes) == 16


def test_without_pieces_resume_begins_at_the_start(planish, command, tmp_path):
    result = planish(*command(tmp_path / "q"), "--resume")
    assert result.code == 0 and "begins at the start" in result.err


def test_a_foreign_directory_is_neither_used_nor_removed(planish, command, tmp_path):
    (tmp_path / "q.partial").mkdir()
    (tmp_path / "q.partial" / "thesis.tex").write_text("years of work")
    assert planish(*command(tmp_path / "q")).refused("q.partial", "exists")
    assert planish(*command(tmp_path / "q"), "--resume").refused("q.partial", "exists")
    assert (tmp_path / "q.partial" / "thesis.tex").exists()


def test_of_two_runs_the_second_is_refused(stopped, planish):
    import fcntl

    words, partial = stopped
    lock = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert planish(*words, "--resume").refused("q.partial", "another program")
    finally:
        os.close(lock)


def test_an_error_of_the_model_leaves_no_pieces(planish, command, make_llama, tmp_path):
    from safetensors.numpy import load_file, save_file

    broken = make_llama(name="broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, broken / "model.safetensors")
    words = command(tmp_path / "q")
    words[words.index("--model") + 1] = str(broken)
    assert planish(*words).code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_a_full_disk_keeps_what_is_finished(planish, command, tmp_path, monkeypatch):
    from planish.reference.files import partial

    whole, real = command(tmp_path / "whole"), partial.write_tensors
    assert planish(*whole).code == 0
    for number, more in ((1, ()), (2, ("--resume",))):  # full again while resuming

        def full(path, tensors, last=f"block-{number:05d}"):
            if last in str(path):
                raise OSError(28, "No space left on device")
            real(path, tensors)

        monkeypatch.setattr(partial, "write_tensors", full)
        result = planish(*command(tmp_path / "q"), *more)
        assert result.code == 2 and "No space left on device" in result.err
        assert f"keeps {number} finished piece" in result.err and "; --resume" in result.err
    monkeypatch.undo()
    assert planish(*command(tmp_path / "q"), "--resume").code == 0
    assert snapshot(tmp_path / "q") == snapshot(tmp_path / "whole")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("budget", ["0", "10K"])
def test_the_memory_budget_does_not_change_the_result(planish, command, tmp_path, budget):
    for recipe in ("W8A8", "O3"):
        out, other = tmp_path / recipe, tmp_path / f"{recipe}-disk"
        assert planish(*command(out, recipe=recipe)).code == 0
        result = planish(*command(other, "--memory_budget", budget, recipe=recipe))
        assert result.code == 0
        assert snapshot(out) == snapshot(other)


def test_a_bad_budget_is_refused(planish, command, tmp_path):
    for size in ("2 apples", "-1", "G"):
        result = planish(*command(tmp_path / "q", f"--memory_budget={size}"))
        assert result.refused("memory_budget", "as 500M or 2G", size)


def test_progress_in_json_has_a_line_for_each_block(planish, command, tmp_path):
    result = planish(*command(tmp_path / "q", "--progress", "json", "--json"))
    events = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert [event["block"] for event in events] == [1, 2, 3]
    assert all(event["blocks"] == 3 and 0 < event["after"] < 0.1 for event in events)
    assert events[-1]["seconds_left"] == 0
    said = result.only_json()
    assert (said["out"], said["recipe"]) == (str(tmp_path / "q"), "W8A8")
    assert said["peak_memory_bytes"] > 10**6 and len(said["blocks"]) == 3


def test_progress_of_resumed_blocks_has_their_errors(planish, stopped):
    words, _ = stopped
    said = planish(*words, "--resume", "--json").only_json()
    assert [block["resumed"] for block in said["blocks"]] == [True, False, False]
    assert said["blocks"][0]["after"] > 0
