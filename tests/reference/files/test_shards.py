"""Which files hold the tensors: shards and their index, and no path out of the directory."""

import json
import os
import socket

import numpy as np
import pytest
from safetensors.numpy import save_file

from planish.reference.errors import CheckpointError, ConfigError, PlanishError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.shards import INDEX, SINGLE

A, B = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tiny, tmp_path):
    """A valid model of two shards with its index."""
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).unlink()
    tensors = sorted(tiny.tensors(tiny.values()).items())
    save_file(dict(tensors[:10]), path / A)
    save_file(dict(tensors[10:]), path / B)
    weight_map = {name: A if i < 10 else B for i, (name, _) in enumerate(tensors)}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


def edit(path, change):
    values = json.loads((path / INDEX).read_text())
    change(values["weight_map"])
    (path / INDEX).write_text(json.dumps(values))


def test_shards_give_the_same_model_as_one_file(sharded, tiny, tmp_path):
    whole = load_weights(open_checkpoint(tiny.write(tmp_path / "whole")))
    split = load_weights(open_checkpoint(sharded))
    assert np.array_equal(split.embed, whole.embed)
    assert np.array_equal(split.blocks[1].mlp.down.weight, whole.blocks[1].mlp.down.weight)


def test_a_single_file_wins_over_an_index_as_in_transformers(tiny, sharded, caplog):
    tensors = tiny.tensors(tiny.values(), 1)
    save_file(tensors, sharded / SINGLE)
    (sharded / A).unlink()
    (sharded / B).write_bytes(b"damaged, but not looked at")
    found = load_weights(open_checkpoint(sharded))
    assert np.array_equal(found.embed, tensors["model.embed_tokens.weight"])
    assert [r.getMessage() for r in caplog.records] == [
        f"{sharded / INDEX}: not read, as {SINGLE} is there"
    ]


@pytest.mark.parametrize(
    "name",
    [
        "../x.safetensors",
        "/etc/passwd",
        "/etc/x.safetensors",
        "a/b.safetensors",
        "..",
        "",
        "x\0.safetensors",
        "a\\b.safetensors",
        "model.bin",
        "C:x.safetensors",
        "model.safetensors\n",
    ],
)
def test_an_index_must_name_plain_files(sharded, name):
    edit(sharded, lambda m: m.update({"lm_head.weight": name}))
    with pytest.raises(CheckpointError, match="a shard must be a plain file name") as caught:
        open_checkpoint(sharded)
    assert str(sharded / INDEX) in str(caught.value) and str(caught.value).isprintable()


def missing_shard(path):
    (path / B).unlink()


def tensor_in_two_shards(path):
    save_file({"lm_head.weight": np.zeros((48, 32), np.float32)}, path / "z.safetensors")
    edit(path, lambda m: m.update({"x": "z.safetensors"}))


def tensor_elsewhere(path):
    edit(path, lambda m: m.update({"lm_head.weight": B}))


def tensor_without_entry(path):
    edit(path, lambda m: m.pop("lm_head.weight"))


def tensor_missing(path):
    edit(path, lambda m: m.update({"model.layers.9.x.weight": A}))


def write_index(text):
    return lambda path: (path / INDEX).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, rf"{B}: shard is missing"),
        (tensor_in_two_shards, "lm_head.weight: (is in two|is not where)"),
        (tensor_elsewhere, "lm_head.weight: is not where the index says; expected .*00001.*00002"),
        (tensor_without_entry, "lm_head.weight: is not where the index says.*found no entry"),
        (tensor_missing, r"model\.layers\.9\.x\.weight: is missing"),
        (write_index("not JSON"), "index.json: is not JSON"),
        (write_index(""), "index.json: is not JSON"),
        (write_index("[]"), "expected a JSON object, found list"),
        (write_index("{}"), "weight_map: bad value; expected tensor name -> file name"),
        (write_index('{"weight_map": []}'), "weight_map: bad value"),
        (write_index('{"weight_map": {"a": 3}}'), "weight_map: bad value"),
        (write_index('{"weight_map": {"a": "x", "a": "y"}}'), "a key occurs twice"),
        (write_index('{"weight_map": {}}'), "is missing"),
        (write_index("version https://git-lfs.github.com/spec/v1\n"), "Git-LFS pointer"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(sharded, damage, message):
    damage(sharded)
    with pytest.raises((CheckpointError, ConfigError), match=message) as caught:
        open_checkpoint(sharded)
    assert str(sharded) in str(caught.value) and str(caught.value).isprintable()


def test_a_tensor_named_for_both_shards_is_refused(sharded):
    extra = {"lm_head.weight": np.zeros((48, 32), np.float32)}
    rest = {n: e.map() for n, e in open_checkpoint(sharded).entries.items() if e.file.name == B}
    save_file({**extra, **{n: np.array(t) for n, t in rest.items()}}, sharded / B)
    with pytest.raises(CheckpointError, match="lm_head.weight: is in two shards"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("name", [SINGLE, A])
def test_a_link_out_of_the_directory_is_refused(sharded, tiny, tmp_path, name):
    path = sharded if name == A else tiny.write(tmp_path / "single")
    outside = tmp_path / "outside.safetensors"
    (path / name).rename(outside)
    (path / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match="links out of the model's directory"):
        open_checkpoint(path)


def test_a_link_out_of_the_directory_is_followed_where_it_is_allowed(tiny, tmp_path):
    """A farm of links, as DVC, git-annex and Nix make them."""
    store, path = tiny.write(tmp_path / "store"), tmp_path / "model"
    path.mkdir()
    for file in store.iterdir():
        (path / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match="give --allow_links if you trust it"):
        open_checkpoint(path)
    assert open_checkpoint(path, allow_links=True).entries


@pytest.mark.parametrize("allowed", [False, True])
def test_a_link_to_nothing_says_where_it_leads(tiny, tmp_path, allowed):
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).unlink()
    (path / SINGLE).symlink_to("../annex/key")
    with pytest.raises(CheckpointError, match=f"{SINGLE}: .*missing; found a link to ../annex/key"):
        open_checkpoint(path, allowed)


def test_a_link_within_the_directory_works(tiny, tmp_path):
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).rename(path / "weights.safetensors")
    (path / SINGLE).symlink_to("weights.safetensors")
    assert open_checkpoint(path).entries


def test_links_that_end_in_the_directory_work_as_kubernetes_makes_them(tiny, tmp_path):
    path = tmp_path / "volume"
    mounted = tiny.write(path / "..2026_01")
    (path / "..data").symlink_to("..2026_01")
    for file in mounted.iterdir():
        (path / file.name).symlink_to(f"..data/{file.name}")
    (tmp_path / "model").symlink_to(path)
    for place in (path, tmp_path / "model"):
        assert open_checkpoint(place).entries


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_no_other_file_may_link_out_either(tiny, tmp_path, name):
    path = tiny.write(tmp_path / "model")
    (path / name).touch()
    (path / name).rename(tmp_path / "elsewhere")
    (path / name).symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: links out of the model's directory"):
        open_checkpoint(path)


def test_hugging_face_s_cache_layout_works(tiny, tmp_path):
    snapshot = tiny.write(tmp_path / "models--x" / "snapshots" / "abc")
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(snapshot.iterdir())):
        file.rename(blobs / f"{index}")
        file.symlink_to(f"../../blobs/{index}")
    assert load_weights(open_checkpoint(snapshot)).embed.shape == (48, 32)
    (tmp_path / "link").symlink_to(snapshot)
    assert open_checkpoint(tmp_path / "link").entries
    blobs.rename(tmp_path / "other disk")
    blobs.symlink_to(tmp_path / "other disk")
    with pytest.raises(CheckpointError, match="--allow_links"):
        open_checkpoint(snapshot)
    assert open_checkpoint(snapshot, allow_links=True).entries


def test_a_model_in_a_folder_of_the_cache_s_repository_works(tiny, tmp_path):
    path = tiny.write(tmp_path / "models--x" / "snapshots" / "abc" / "onnx")
    blobs = tmp_path / "models--x" / "blobs"
    blobs.mkdir()
    (path / SINGLE).rename(blobs / "hash")
    (path / SINGLE).symlink_to("../../../blobs/hash")
    assert open_checkpoint(path).entries


def test_blobs_are_only_the_cache_s(tiny, tmp_path):
    path = tiny.write(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "blobs").mkdir()
    (path / SINGLE).rename(tmp_path / "a" / "blobs" / "hash")
    (path / SINGLE).symlink_to("../../blobs/hash")
    with pytest.raises(CheckpointError, match="links out of the model's directory"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", [SINGLE, A, "config.json", "tokenizer.json", INDEX])
def test_a_pipe_is_refused_and_not_waited_for(sharded, tiny, name):
    path = sharded if name in (A, INDEX) else tiny.write(sharded.with_name("single"))
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(CheckpointError, match=f"{name}: is not a file; .*found a named pipe"):
        open_checkpoint(path)


def test_a_socket_and_a_directory_are_called_so(tiny, tmp_path, monkeypatch):
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).unlink()
    monkeypatch.chdir(path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(SINGLE)
        with pytest.raises(CheckpointError, match="found a socket"):
            open_checkpoint(path)
    (path / SINGLE).unlink()
    (path / SINGLE).mkdir()
    with pytest.raises(CheckpointError, match=f"{SINGLE}: cannot be read: Is a directory"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_never_loaded(tiny, tmp_path, name):
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).rename(path / name)
    with pytest.raises(CheckpointError, match=f"never loaded; convert them .*found {name}"):
        open_checkpoint(path)


def test_a_directory_without_weights_or_config_and_a_file_are_refused(tiny, tmp_path):
    path = tiny.write(tmp_path / "model")
    (path / SINGLE).unlink()
    with pytest.raises(CheckpointError, match="has no model.safetensors and no index"):
        open_checkpoint(path)
    (path / "config.json").unlink()
    with pytest.raises(ConfigError, match="config.json: no such file"):
        open_checkpoint(path)
    for place in (path / "tokenizer.json", tmp_path / "none"):
        with pytest.raises(PlanishError, match="is not a directory with a model"):
            open_checkpoint(place)


def test_a_shard_that_links_to_itself_is_missing(sharded):
    (sharded / A).unlink()
    (sharded / A).symlink_to(A)
    with pytest.raises(PlanishError, match="shard is missing"):
        open_checkpoint(sharded)


@pytest.mark.parametrize("content", ["", "{}", '{"weight_map": {"a": "pytorch_model.bin"}}'])
def test_an_index_that_is_not_read_may_say_anything(tiny, tmp_path, content):
    model = tiny.write(tmp_path / "model")
    (model / INDEX).write_text(content)
    open_checkpoint(model)


@pytest.mark.parametrize("name", ["generation_config.json", "added_tokens.json"])
def test_a_link_to_nothing_is_not_taken_for_a_missing_file(tiny, tmp_path, name):
    model = tiny.write(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(".git/annex/objects/x")
    with pytest.raises(CheckpointError, match=f"{name}: is not there.*found a link to .git/annex"):
        open_checkpoint(model)


@pytest.mark.parametrize("linked", ["directory", "file"])
def test_a_template_that_links_out_of_the_model_is_refused(tiny, tmp_path, linked):
    model = tiny.write(tmp_path / "model")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "tool_use.jinja").write_text("x")
    if linked == "directory":
        (model / "additional_chat_templates").symlink_to(outside)
    else:
        (model / "additional_chat_templates").mkdir()
        file = model / "additional_chat_templates" / "tool_use.jinja"
        file.symlink_to(outside / "tool_use.jinja")
    with pytest.raises(CheckpointError, match="links out of the model's directory"):
        open_checkpoint(model)
    open_checkpoint(model, allow_links=True)


def test_a_file_that_nobody_reads_may_link_anywhere(tiny, tmp_path):
    model = tiny.write(tmp_path / "model")
    (model / "notes.json").symlink_to("/etc/hostname")
    open_checkpoint(model)
