"""Peak memory of a quantization: two float blocks, the budget, and 500 MB.

The models are files with holes, which cost no disk. One has 8 blocks of 100 MB, so a process that
kept all of them would exceed the limit; the other is wide and otherwise tiny, so a process that
kept all hidden states would.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import open_checkpoint
from tests.models import LLAMA, byte_tokenizer, llama_shapes

BUDGET, REST = 8 * 2**20, 500e6
LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 6784,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 512,
}
WIDE = {
    "hidden_size": 4096,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
MEASURE = """
import sys
from planish.command import run, parse
from planish.reference.quantize.estimate import peak_resident
code = run(parse(["planish", *sys.argv[1:]]))
print(code, peak_resident())
"""
ESTIMATED = """
import sys
from planish import calibration
from planish.command import run, parse
from planish.reference.quantize.estimate import peak_resident
estimate = calibration.estimate
def watched(*given):
    found = estimate(*given)
    print(found.bytes, peak_resident())
    return found
calibration.estimate = watched
code = run(parse(["planish", *sys.argv[1:]]))
print(code, peak_resident())
"""


def write_zeros(path: Path, changes: dict[str, int]) -> Path:
    """A Llama whose weights are zeros."""
    path.mkdir()
    config = {**LLAMA, **changes}
    (path / "config.json").write_text(json.dumps(config))
    byte_tokenizer().save(str(path / "tokenizer.json"))
    header: dict[str, object] = {}
    end = 0
    for name, shape in llama_shapes(config).items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def block_bytes(path: Path) -> int:
    entries = open_checkpoint(path).entries
    return sum(one.size for name, one in entries.items() if ".layers.0." in name)


DEEP = {"hidden_size": 64, "intermediate_size": 2560, "num_hidden_layers": 1}


def measure(*words: object) -> int:
    """The peak resident bytes of a process that quantizes."""
    command = [sys.executable, "-c", MEASURE, "quantize", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    code, peak = done.stdout.split()
    assert code == "0", done.stderr
    return int(peak)


def test_of_a_large_model_only_two_blocks_are_in_memory(tmp_path):
    large = write_zeros(tmp_path / "large", LARGE)
    peak = measure("--model", large, "--out", tmp_path / "q", "--recipe", "W4A16")
    block = block_bytes(large)
    assert LARGE["num_hidden_layers"] * block > 2 * block + REST  # not if all were
    assert peak <= 2 * block + REST, f"{peak / 1e6:.0f} MB, a block {block / 1e6:.0f} MB"


@pytest.mark.whole
def test_hidden_states_beyond_the_budget_are_not_in_memory(tmp_path):
    wide, count = write_zeros(tmp_path / "wide", WIDE), 40
    where = ("--model", wide, "--out", tmp_path / "q", "--recipe", "W8A8", "--samples", count)
    peak = measure(*where, "--engine", "reference", "--memory_budget", BUDGET)
    states, block = count * 512 * WIDE["hidden_size"] * 4, block_bytes(wide)
    assert 2 * states > 2 * block + BUDGET + REST  # a block's inputs and outputs
    assert peak <= 2 * block + BUDGET + REST, f"{peak / 1e6:.0f} MB"


@pytest.mark.whole
def test_the_estimate_before_the_first_block_has_gptqs_hessians(tmp_path):
    """down's Hessian of 2,560 inputs takes 26 MB, and its factor ten times as much."""
    deep = write_zeros(tmp_path / "deep", DEEP)
    words = ("quantize", "--model", deep, "--out", tmp_path / "q", "--recipe", "W4A16")
    short = ("--method", "gptq", "--samples", 2, "--sequence_length", 64, "--engine", "reference")
    command = [sys.executable, "-c", ESTIMATED, *map(str, (*words, *short))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    estimated, before, code, peak = map(int, done.stdout.split())
    assert code == 0, done.stderr
    assert peak > 2 * before, "the method's own work is most of the memory"
    assert 0.8 * peak < estimated < 1.4 * peak, (estimated, before, peak)
