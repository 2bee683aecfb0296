"""Writing: whole or not at all, whatever happens in the middle."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from planish.reference.errors import CheckpointError, OutputError, PlanishError
from planish.reference.files import placing
from planish.reference.files import writer as writing
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter

ROOT = Path(__file__).parents[3]


@pytest.fixture
def source(tiny, tmp_path):
    return tiny.write(tmp_path / "source")


def entries(source):
    return {name: entry.map() for name, entry in open_checkpoint(source).entries.items()}


def write_model(source, target, mark=0, overwrite=False):
    values = {**open_checkpoint(source).values, "mark": mark}
    with CheckpointWriter(target, source, overwrite) as writer:
        for name, tensor in entries(source).items():
            writer.add(name, tensor)
        writer.finish(values)


def mark_of(target):
    return open_checkpoint(target).values["mark"]


def leftovers(target):
    return [p for p in target.parent.iterdir() if p.name not in (target.name, "source")]


def test_what_is_written_can_be_read_and_tokenizer_files_come_along(source, tmp_path):
    (source / "chat_template.jinja").write_text("x")
    (source / "added_tokens.json").write_text("{}")
    (source / "pytorch_model.bin").write_text("x")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("x")
    target = tmp_path / "out"
    write_model(source, target)
    names = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    come_along = {"tokenizer.json", "added_tokens.json", "chat_template.jinja"}
    come_along |= {"additional_chat_templates/tool_use.jinja"}
    assert names == {"config.json", "model.safetensors", *come_along}
    found = safetensors.numpy.load_file(target / "model.safetensors")
    assert all(np.array_equal(found[n], t) for n, t in entries(source).items())
    assert leftovers(target) == []


def test_large_models_are_written_in_shards_with_an_index(source, tmp_path, monkeypatch):
    monkeypatch.setattr(writing, "SHARD_BYTES", 8000)
    write_model(source, tmp_path / "out")
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in entries(source).values())
    here, there = (load_weights(open_checkpoint(p)) for p in (source, tmp_path / "out"))
    assert np.array_equal(here.blocks[1].mlp.down.weight, there.blocks[1].mlp.down.weight)


def test_an_existing_target_needs_overwrite(source, tmp_path):
    target = tmp_path / "out"
    write_model(source, target, 1)
    with pytest.raises(OutputError, match="out: exists; give --overwrite"):
        write_model(source, target, 2)
    assert mark_of(target) == 1
    write_model(source, target, 2, overwrite=True)
    assert mark_of(target) == 2 and leftovers(target) == []


def test_overwrite_works_where_directories_cannot_be_exchanged(source, tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_model(source, target, 1)
    monkeypatch.setattr(placing.ctypes, "CDLL", lambda *_, **__: object())
    write_model(source, target, 2, overwrite=True)
    assert mark_of(target) == 2 and leftovers(target) == []


def test_overwrite_does_not_replace_what_is_no_model(source, tmp_path):
    target = tmp_path / "home"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="home: exists and contains no model"):
        write_model(source, target, overwrite=True)
    assert (target / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("place", ["source", "source/inside", "source/../source", "link"])
def test_the_model_being_read_is_never_the_target(source, tmp_path, place):
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError, match="is (inside )?the model being read"):
        CheckpointWriter(tmp_path / place, source, overwrite=True)
    with pytest.raises(OutputError, match="holds the model being read"):
        CheckpointWriter(source.parent, source, overwrite=True)


def test_a_file_a_dangling_link_or_no_parent_is_refused(source, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, message in (
        ("file", "not a directory"),
        ("dangling", "not a directory"),
        ("none/out", "none: no such directory"),
    ):
        with pytest.raises(OutputError, match=message):
            CheckpointWriter(tmp_path / name, source, overwrite=True)


STEPS = ["mkdir", "write_tensors", "copyfile", "_write_json", "sync", "put_directory"]


def break_step(monkeypatch, step, error):
    def fail(*_, **__):
        raise error

    owner = {
        "mkdir": Path,
        "copyfile": writing.shutil,
        "_write_json": CheckpointWriter,
    }.get(step, writing)
    monkeypatch.setattr(owner, step, fail)


@pytest.mark.matrix(3)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failure_at_any_step_leaves_the_old_state(
    source, tmp_path, monkeypatch, step, error, existing
):
    target = tmp_path / "out"
    if existing:
        write_model(source, target, 1)
    with monkeypatch.context() as patch:
        break_step(patch, step, error)
        expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
        with pytest.raises(expected) as caught:
            write_model(source, target, 2, overwrite=existing)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{target}: cannot be written: No space left on device"
    assert target.exists() == existing and leftovers(target) == []
    if existing:
        assert mark_of(target) == 1


def test_leaving_without_finish_writes_nothing(source, tmp_path):
    with CheckpointWriter(tmp_path / "out", source) as writer:
        writer.add("w", np.zeros(3, np.float32))
    assert not (tmp_path / "out").exists() and leftovers(tmp_path / "out") == []


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from planish.reference.files import writer as w
from planish.reference.files.load import open_checkpoint
step, source, target = sys.argv[1:]
kind = w.CheckpointWriter if hasattr(w.CheckpointWriter, step) else w

def killed(*given):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(kind, step, killed)
opened = open_checkpoint(source)
with w.CheckpointWriter(target, source, True) as writer:
    for name, entry in opened.entries.items():
        writer.add(name, entry.map())
    writer.finish({{**opened.values, "mark": 2}})
"""


@pytest.mark.matrix(5)
@pytest.mark.parametrize(
    "step", ["_flush", "_name_shards", "_write_json", "put_directory", "remove_directory"]
)
def test_a_kill_leaves_the_old_model_or_the_new_one(source, tmp_path, step):
    target = tmp_path / "out"
    write_model(source, target, 1)
    program = KILLED.format(root=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", program, step, str(source), str(target)],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert mark_of(target) == (2 if step == "remove_directory" else 1)
    (left,) = leftovers(target)
    assert left.name.startswith(".out.tmp-")
    if step in ("_flush", "_name_shards", "_write_json"):
        assert not (left / "config.json").exists()
        with pytest.raises(PlanishError):
            open_checkpoint(left)
    write_model(source, target, 3, overwrite=True)  # what is left does not stand in the way
    assert mark_of(target) == 3


def test_a_disk_that_is_full_is_one_line_and_leaves_nothing(source, tmp_path, monkeypatch):

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
        with pytest.raises(OutputError, match="out: cannot be written: File too large"):
            write_model(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, old)
    assert leftovers(tmp_path / "out") == []


def test_a_damaged_source_is_found_before_anything_is_written(source, tmp_path):
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        write_model(source, tmp_path / "out")
    assert leftovers(tmp_path / "out") == []


def test_strange_characters_of_a_config_survive(source, tmp_path):
    file = source / "config.json"
    file.write_text(file.read_text()[:-1] + ', "note": "\\ud800 \\u00e9"}')
    write_model(source, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").values["note"] == "\ud800 é"
