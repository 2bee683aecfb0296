"""Damage checkpoints of every format and read them: a model, or one line of a typed error.

    python -m tests.fuzz --count 100000 --seed 0      a night's run; the tests run a thousand

A case is its seed: one sample, one of its files, one kind of damage. A case fails if anything but a
PlanishError comes out, if its message is not one printable line, if reading takes longer than
SECONDS, or if it needs more than MEMORY bytes of addresses in addition to those of the start.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference import gguf
from planish.reference.errors import PlanishError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import forward
from planish.reference.text.tokenizer import load_tokenizer
from tests.golden.foreign import TARGET

SECONDS, MEMORY = 30, 2**30
HEADER = 8  # bytes of a safetensors header's length
COUNTS = (0, 1, 31, 2**31, 2**32 - 1, 2**40, 2**53, 2**62, 2**63, 2**64 - 1)
LIES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 5, 16, 2**31, 2**63, 2**64, 10**400, -(2**63)),
    *(0.5, -0.0, 1e308, float("nan"), float("inf"), "", "x", "4", "../..", "\x1b[2J", "x" * 5000),
    *([], [[]], {}, [1, 2], {"a": 1}, [None] * 9, {"": {"": []}}, ["re:("], ["re:(a+)+$"]),
)
DTYPES = ("F32", "F16", "BF16", "I8", "U8", "I32", "U32", "I64", "F8_E4M3", "BOOL", "F4", "")
SAME_SIZE = dict.fromkeys(("F32", "I32", "U32"), ("F32", "I32", "U32"))
SAME_SIZE |= dict.fromkeys(("F16", "BF16"), ("F16", "BF16", "I16"))
SAME_SIZE |= dict.fromkeys(("I8", "U8", "F8_E4M3"), ("I8", "U8", "F8_E4M3", "BOOL"))
SHAPES = ([], [0], [1], [-1, 2], [2**63], [2**31, 2**31], [2**62, 4], [1] * 64, [1.5], ["a"], None)
NUMBERS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8", "I8": "i1"}
BAD_NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-45, 3e38, -1.0)
BAD_INTEGERS = (-1, -(2**31), 2**31 - 1, 0, 7, 127, -128)

Random = np.random.Generator
Damage = Callable[[bytes, Random], bytes]


def pick(rng: Random, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def flip(raw: bytes, rng: Random) -> bytes:
    """Change one to eight bits, most of them in the header."""
    changed = bytearray(raw)
    end = len(changed) if rng.random() < 0.2 else min(len(changed), 12_000)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(end)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def cut(raw: bytes, rng: Random) -> bytes:
    """Leave off the end."""
    return raw[: rng.integers(len(raw))]


def split_header(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file, and its data."""
    size = struct.unpack("<Q", raw[:HEADER])[0]
    return json.loads(raw[HEADER : HEADER + size]), raw[HEADER + size :]


def join_header(values: Any, data: bytes) -> bytes:
    header = json.dumps(values).encode()
    return struct.pack("<Q", len(header)) + header + data


def lie_in_header(raw: bytes, rng: Random) -> bytes:
    """Another type, shape, place or name of some tensors, or one that is gone or there twice."""
    values, data = split_header(raw)
    for _ in range(rng.integers(1, 4)):
        names = [name for name, entry in values.items() if "dtype" in entry]
        name, lies = pick(rng, names or ["x"]), (lie_about_name, lie_about_entry, lie_about_entry)
        if names:
            pick(rng, lies)(values, name, rng)
    return join_header(values, data)


def lie_about_name(values: dict[str, Any], name: str, rng: Random) -> None:
    """A tensor that is gone, has another name, or the place of another one or both."""
    entry, kind = values[name], int(rng.integers(4))
    other = pick(rng, [one for one in values if "dtype" in values[one]])
    if kind == 0:
        del values[name]
    elif kind == 1:
        values[pick(rng, ("", "a", name + "x", f"{name}.weight_scale"))] = values.pop(name)
    elif kind == 2:
        values[name] = dict(values[other])
    else:
        values[name], values[other] = values[other], entry


def lie_about_entry(values: dict[str, Any], name: str, rng: Random) -> None:
    """Another type, shape or place; half of the time one that needs as many bytes."""
    entry, kind = values[name], int(rng.integers(6))
    if kind == 0:
        entry["dtype"] = pick(rng, DTYPES)
    elif kind == 1:
        entry["shape"] = pick(rng, SHAPES)
    elif kind == 2:
        entry["data_offsets"] = [pick(rng, COUNTS), pick(rng, COUNTS)]
    elif kind == 3:
        entry["dtype"] = pick(rng, SAME_SIZE.get(entry["dtype"], DTYPES))
    else:
        shape = entry.get("shape") or [1]
        entry["shape"] = [shape[i] for i in rng.permutation(len(shape))]


def lie_about_length(raw: bytes, rng: Random) -> bytes:
    return struct.pack("<Q", pick(rng, COUNTS)) + raw[HEADER:]


def spoil_numbers(raw: bytes, rng: Random) -> bytes:
    """NaN, 0 and Inf among scales, negative and large integers among indices and codes."""
    values, data = split_header(raw)
    names = [name for name, one in values.items() if one.get("dtype") in NUMBERS]
    small = [name for name in names if any(x in name for x in ("scale", "zero", "idx", "shape"))]
    entry = values[pick(rng, small if small and rng.random() < 0.8 else names)]
    start, end = entry["data_offsets"]
    numbers = np.frombuffer(data[start:end], NUMBERS[entry["dtype"]]).copy()
    if numbers.size:
        where = rng.integers(numbers.size, size=int(rng.integers(1, 4)))
        floats = numbers.dtype.kind == "f"
        with np.errstate(all="ignore"):
            bad = np.array(pick(rng, BAD_NUMBERS if floats else BAD_INTEGERS))
            numbers[where] = bad.astype(numbers.dtype)
    return raw[: len(raw) - len(data) + start] + numbers.tobytes() + data[end:]


def lie_in_json(raw: bytes, rng: Random) -> bytes:
    """Other values in some places of a JSON file, or keys that are gone."""
    values = json.loads(raw)
    for _ in range(rng.integers(1, 4)):
        place = values
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = pick(rng, keys)
            if isinstance(place[key], dict | list) and rng.random() < 0.8:
                place = place[key]
                continue
            if rng.random() < 0.15:
                del place[key]
            else:
                place[key] = copy.deepcopy(pick(rng, LIES))
            break
    return json.dumps(values).encode()


def lie_in_gguf(raw: bytes, rng: Random) -> bytes:
    """Absurd counts, lengths, sizes, offsets and types in the fields of a GGUF header."""
    fields, changed = list_fields(raw), bytearray(raw)
    for _ in range(rng.integers(1, 4)):
        at, size = pick(rng, fields)
        value = pick(rng, COUNTS) if rng.random() < 0.7 else int(rng.integers(64)) * 32
        changed[at : at + size] = struct.pack("<Q", value)[:size]
    return bytes(changed)


def list_fields(raw: bytes) -> list[tuple[int, int]]:
    """Where the numbers of 4 and 8 bytes of a GGUF header are."""
    found = []

    class Recorder(gguf._Bytes):
        def take(self, size: int, what: str) -> bytes:
            if what == "a number" and size in (4, 8):
                found.append((self.at, size))
            return super().take(size, what)

    header = Recorder(Path("model.gguf"), np.frombuffer(raw, np.uint8))
    header.take(4, "the letters GGUF")
    header.number("<I")
    tensors, keys = header.count(24, "tensors"), header.count(13, "keys")
    gguf._read_keys(header, keys)
    few = found[:: max(1, len(found) // 200)]  # strings of the vocabulary are most of them
    found.clear()
    for _ in range(tensors):
        gguf._read_info(header)
    return few + found


DAMAGES: dict[str, tuple[Damage, ...]] = {
    ".safetensors": (flip, cut, lie_about_length, *[lie_in_header, spoil_numbers] * 3),
    ".json": (*[lie_in_json] * 8, flip, cut),
    ".gguf": (flip, flip, cut, *[lie_in_gguf] * 3),
}
UNREAD = ("dequantized.json", "MADE_BY.json")


def list_samples() -> list[Path]:
    """The directories of tests/foreign: every format, as its own program wrote it."""
    return sorted(path for path in TARGET.iterdir() if path.is_dir() and path.name[0] not in "._")


def read(path: Path) -> None:
    """Open, load and compute, and read a GGUF file's tokenizer, as the command does."""
    checkpoint = open_checkpoint(path)
    checkpoint.schemes()
    if any(path.glob("*.gguf")):
        load_tokenizer(path, checkpoint.config)
    with np.errstate(all="ignore"):
        forward(checkpoint.config, load_weights(checkpoint), [1, 2, 3])


def damage_copy(sample: Path, target: Path, seed: int) -> str:
    """Copy a sample with one damaged file; what was done to which."""
    rng = np.random.default_rng(seed)
    shutil.copytree(sample, target)
    files = [f for f in sorted(target.iterdir()) if f.suffix in DAMAGES and f.name not in UNREAD]
    file = pick(rng, files)
    damage = pick(rng, DAMAGES[file.suffix])
    file.write_bytes(damage(file.read_bytes(), rng))
    return f"{sample.name}/{file.name} {damage.__name__}"


def judge(sample: Path, seed: int, directory: Path) -> tuple[str, str]:
    """How a case ends, `read`, `refused` or `FAILED`, and what was done or went wrong."""
    target = directory / str(seed)
    what = damage_copy(sample, target, seed)
    try:
        with limit_seconds():
            read(target)
        return "read", what
    except PlanishError as problem:
        if str(problem).isprintable():
            return "refused", what
        return "FAILED", f"{what}: {problem!r}"
    except Exception:
        return "FAILED", f"{what}: {traceback.format_exc(limit=-4)}"
    finally:
        shutil.rmtree(target, ignore_errors=True)


@contextlib.contextmanager
def limit_seconds() -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer than SECONDS."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"takes longer than {SECONDS} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextlib.contextmanager
def limit_memory() -> Iterator[None]:
    """Let this process map only MEMORY bytes more than now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def run(seeds: range, report: Callable[[str], None] = print) -> Counter[str]:
    """Judge cases; the number of each end, and of each by sample, are counted."""
    samples, ends = list_samples(), Counter[str]()
    with tempfile.TemporaryDirectory() as directory, limit_memory():
        for seed in seeds:
            sample = samples[seed % len(samples)]
            end, what = judge(sample, seed, Path(directory))
            ends[end] += 1
            ends[f"{sample.name}: {end}"] += 1
            if end == "FAILED":
                report(f"seed {seed}: {what}")
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    args = parser.parse_args()
    start = time.perf_counter()
    ends = run(range(args.seed, args.seed + args.count), lambda line: print(line, flush=True))
    for name, count in sorted(ends.items()):
        print(f"{count:8} {name}")
    print(f"{args.count} cases in {time.perf_counter() - start:.0f} s")
    return 1 if ends["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
