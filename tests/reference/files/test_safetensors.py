"""Damaged weights files: each is a CheckpointError of one line that names the file."""

import json
import re
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from planish.reference.errors import CheckpointError
from planish.reference.files.safetensors import (
    ALIGNMENT,
    ask_huge_pages,
    read_entries,
    write_tensors,
)

VALID = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [16, 24]},
}
DATA = bytes(24)


def container(header, data=DATA, length=None):
    """A file from a header (JSON value or bytes), with a lie about its length if wanted."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def changed(name="b", **fields):
    return {**VALID, name: {**VALID[name], **fields}}


DUPLICATE = json.dumps(VALID)[:-1].encode() + b', "a": ' + json.dumps(VALID["a"]).encode() + b"}"
HUGE = 2**62

CORRUPT = {
    "empty": (b"", "truncated or not a safetensors file"),
    "seven bytes": (b"\x10\0\0\0\0\0\0", "truncated or not a safetensors file"),
    "header longer than the file": (container(VALID, length=10_000), "header within the file's"),
    "header length 2**63": (container(VALID, length=2**63), "found 9223372036854775808"),
    "header over the limit": (container(VALID, length=100_000_001), "header within"),
    "header of length 0": (container(b""), "header is not JSON"),
    "not JSON": (container(b"{" + b"x" * 40), "header is not JSON"),
    "not UTF-8": (container(b'{"\xff\xfe": 1}'), "header is not JSON: 'utf-8' codec"),
    "deeply nested": (container(b"[" * 100_000), "header is not JSON"),
    "a JSON list": (container([VALID]), "is damaged"),
    "a JSON number": (container(b"12345678"), "is damaged"),
    "duplicate key": (container(DUPLICATE), "a: is a duplicate key of the header"),
    "truncated data": (container(VALID, DATA[:-1]), "is damaged"),
    "no data": (container(VALID, b""), "is damaged"),
    "trailing bytes": (container(VALID, DATA + b"\0"), "is damaged"),
    "overlap": (container(changed(data_offsets=[8, 16]), DATA[:16]), "is damaged"),
    "a hole": (container(changed(data_offsets=[20, 28]), bytes(28)), "is damaged"),
    "decreasing offsets": (container(changed(data_offsets=[24, 16])), "is damaged"),
    "negative offsets": (container(changed(data_offsets=[-8, 0])), "is damaged"),
    "offsets beyond 2**64": (container(changed(data_offsets=[2**64, 2**65])), "is damaged"),
    "three offsets": (container(changed(data_offsets=[16, 20, 24])), "is damaged"),
    "float offsets": (container(changed(data_offsets=[16.0, 24.0])), "is damaged"),
    "shape too large for the data": (container(changed(shape=[5])), "is damaged"),
    "huge dimensions": (container(changed(shape=[HUGE, HUGE])), "is damaged"),
    "product wraps to the right size": (container(changed(shape=[HUGE, 4, 4, 4])), "is damaged"),
    "negative dimension": (container(changed(shape=[-4])), "is damaged"),
    "unknown dtype": (container(changed(dtype="Q4")), "is damaged"),
    "dtype not a string": (container(changed(dtype=3)), "is damaged"),
    "no shape": (container({"a": {"dtype": "F32"}}), "is damaged"),
    "entry not an object": (container({"a": 3}), "is damaged"),
    "metadata not text": (container({**VALID, "__metadata__": {"x": 1}}), "is damaged"),
    "Git-LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git-LFS"),
    "an HTML page": (b"<!DOCTYPE html><html><body>404</body></html>", "not a safetensors file"),
    "a pickle": (b"\x80\x02}q\x00(X\x06\x00\x00\x00weightq\x01K\x01u.", "not a safetensors file"),
    "a zip of pickles": (b"PK\x03\x04" + bytes(100), "not a safetensors file|is damaged|not JSON"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + bytes(64), "not a safetensors file"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_damaged_file_is_refused_by_name(tmp_path, case):
    content, message = CORRUPT[case]
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_entries(file)
    text = str(caught.value)
    assert text.startswith(str(file)) and text.isprintable() and len(text) < 1000


def test_the_valid_file_from_which_they_are_made_is_read(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(container(VALID))
    found = read_entries(file)
    assert {name: entry.shape for name, entry in found.items()} == {"a": (2, 2), "b": (4,)}
    assert found["b"].map().tolist() == [0, 0, 0, 0]


def test_a_missing_file_or_a_directory_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="none: cannot be read: No such file"):
        read_entries(tmp_path / "none")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_entries(tmp_path)


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    return {
        "f32": rng.standard_normal((3, 5)).astype(np.float32),
        "f16": rng.standard_normal(7).astype(np.float16),
        "bf16": rng.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
        "i8": rng.integers(-127, 128, (3, 3), np.int8),
        "transposed": rng.integers(0, 255, (4, 9), np.uint8).T,
        "empty": np.zeros((0, 4), np.float32),
    }


def test_written_tensors_lie_at_64_byte_offsets_and_come_back(tmp_path, tensors):
    file = tmp_path / "model.safetensors"
    write_tensors(file, tensors)
    found = read_entries(file)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].offset % ALIGNMENT == 0
        assert np.array_equal(found[name].map(), tensor) and found[name].shape == tensor.shape


def test_the_safetensors_library_reads_what_is_written(tmp_path, tensors):
    file = tmp_path / "model.safetensors"
    write_tensors(file, tensors)
    found = safetensors.numpy.load_file(file)
    assert set(tensors) <= set(found)
    assert all(name.startswith("__padding__.") for name in set(found) - set(tensors))
    assert np.array_equal(found["transposed"], tensors["transposed"])


def test_a_mapped_tensor_cannot_be_written_to(tmp_path, tensors):
    write_tensors(tmp_path / "m", tensors)
    with pytest.raises(ValueError, match="read-only"):
        read_entries(tmp_path / "m")["f32"].map()[0, 0] = 1


def test_a_file_without_padding_has_each_tensor_at_a_multiple_of_its_type(tmp_path):
    tensors = {
        "bytes": np.arange(3, dtype=np.uint8),
        "halves": np.ones(3, np.float16),
        "floats": np.ones((2, 3), np.float32),
    }
    write_tensors(tmp_path / "m", tensors, padded=False)
    raw = (tmp_path / "m").read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    assert header.keys() == {"__metadata__", *tensors}
    assert len(raw) == start + sum(tensor.nbytes for tensor in tensors.values())
    for name, tensor in tensors.items():
        assert (start + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0
        np.testing.assert_array_equal(read_entries(tmp_path / "m")[name].map(), tensor)


def test_a_tensor_of_a_type_that_we_do_not_compute_with_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(3)}, path)
    entry = read_entries(path)["a"]
    with pytest.raises(CheckpointError, match=r"wrong type; expected one of F32.*found F64 \[3\]"):
        entry.map()


SMAPS, HUGE_PAGES = Path("/proc/self/smaps"), Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.skipif(not (SMAPS.exists() and HUGE_PAGES.exists()), reason="Linux's huge pages")
def test_huge_pages_are_for_those_who_ask(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(container(VALID))
    entries = read_entries(file)
    assert "hg" not in flags_of(file)
    ask_huge_pages(entries)
    assert "hg" in flags_of(file)


def flags_of(file):
    """The VmFlags of a mapped file, which has one mapping."""
    found = re.search(rf"{re.escape(str(file))}\n(?:\w+:.*\n)+?VmFlags:(.*)", SMAPS.read_text())
    return found[1].split()
