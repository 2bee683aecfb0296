"""GGUF files by hand, right or damaged: each part as bytes."""

import struct
from functools import partial

import numpy as np

from planish.reference.files.export.gguf_container import Part, write_container
from planish.reference.gguf import read_gguf


def string(text):
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, value):
    """A key and its value, already as bytes."""
    return string(name) + struct.pack("<I", kind) + value


def text_key(name, text):
    return key(name, 8, string(text))


def number_key(name, number):
    return key(name, 4, struct.pack("<I", number))


def texts_key(name, texts):
    raw = b"".join(string(text) for text in texts)
    return key(name, 9, struct.pack("<IQ", 8, len(texts)) + raw)


def tensor(name, shape, kind, offset):
    sizes = b"".join(struct.pack("<Q", size) for size in reversed(shape))
    info = struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)
    return string(name) + info


def write(path, keys=(), tensors=(), data=b"", counts=None):
    counts = (len(tensors), len(keys)) if counts is None else counts
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + b"".join([*keys, *tensors])
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def write_tied(source, target):
    """A copy of a file without lm_head: it is then the embedding."""
    file = read_gguf(source)
    parts = {
        name: Part(type=one.type, shape=one.shape, read=partial(np.asarray, one.data))
        for name, one in file.tensors.items()
        if name != "output.weight"
    }
    with target.open("wb") as out:
        write_container(out, file.keys, parts)
    return target
