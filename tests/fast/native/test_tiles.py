"""Matrix tiles: the hardware's against emulated ones, permission, and what a thread leaves behind.

The emulated instruction set is compiled and checked with --whole. What needs AMX is skipped where
the processor or the system does not have it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planish.fast.native import instruction_sets, library
from planish.fast.native.build import SOURCES, find_compiler
from planish.fast.native.instruction_sets import (
    BY_NAME,
    available,
    check_available,
)
from planish.fast.session.engine import Engine
from planish.reference.errors import KernelsError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
FEATURES = BY_NAME["amx"].needs
HAS_AMX = BY_NAME["amx"] in available()
POCKET = ROOT / "pocket" / "model"
WHOLE = pytest.mark.whole
NEEDS_AMX = pytest.mark.skipif(not HAS_AMX, reason="needs AMX")
SMALL_STACK = """
import ctypes, sys
class Stack(ctypes.Structure):
    _fields_ = [("sp", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]
memory = ctypes.create_string_buffer(4096)
stack = Stack(ctypes.cast(memory, ctypes.c_void_p), 0, 4096)
assert ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None) == 0
from planish.fast.native.instruction_sets import available, explain_tiles
print(available()[0].name)
print(explain_tiles())
"""


def compile_tiles(target: Path, *arguments: str) -> str:
    flags = ["-std=c++17", "-O1", f"-I{SOURCES}", "-DPLANISH_ISA=tiles", *arguments]
    source = str(HERE / "tiles_check.cc")
    subprocess.run([find_compiler().path, *flags, source, "-o", str(target)], check=True)
    return str(target)


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


@NEEDS_AMX
def test_emulated_tiles_are_the_processors_bit_for_bit(tmp_path):
    hardware = compile_tiles(tmp_path / "hardware")
    emulated = compile_tiles(tmp_path / "emulated", "-DPLANISH_TILES_EMULATED")
    expected = printed(emulated, "3000")
    assert len(set(expected.split())) > 2000
    assert printed(hardware, "3000") == expected
    assert printed(hardware, "3000", "fork") == expected


MISUSE = """
#include "matmul/tiles.h"
using namespace planish::tiles;
int main() {
  TileConfig config;
  config.set(0, 16, 64); config.set(4, 16, 64); config.set(6, 16, 64); config.set(7, 8, 64);
  %s
}
"""


@pytest.mark.matrix(6)
@pytest.mark.parametrize(
    ("body", "aborts"),
    [
        ("configure_tiles(config); dot_tiles<0, 4, 6>(); release_tiles();", False),
        ("zero_tile<0>();", True),
        ("configure_tiles(config); release_tiles(); dot_tiles<0, 4, 6>();", True),
        ("configure_tiles(config); dot_tiles<0, 4, 7>();", True),
        ("configure_tiles(config); zero_tile<1>();", True),
        ("config.set(1, 17, 64); configure_tiles(config);", True),
    ],
)
def test_emulated_tiles_abort_where_the_processor_would_raise_an_exception(tmp_path, body, aborts):
    source, program = tmp_path / "misuse.cc", str(tmp_path / "misuse")
    source.write_text(MISUSE % body)
    flags = ["-std=c++17", f"-I{SOURCES}", "-DPLANISH_ISA=tiles", "-DPLANISH_TILES_EMULATED"]
    subprocess.run([find_compiler().path, *flags, str(source), "-o", program], check=True)
    assert (subprocess.run([program], check=False).returncode != 0) == aborts


@NEEDS_AMX
def test_where_a_signal_stack_is_too_small_the_next_set_is_used_and_inspect_can_say_why():
    name, why = printed(sys.executable, "-c", SMALL_STACK).splitlines()
    assert name == "avx512"
    assert why == ("the system does not let this process use AMX tiles (No space left on device)")


def test_tiles_that_the_system_refuses_are_not_available(monkeypatch):
    names = [one.name for one in available("x86_64", FEATURES, lambda: None)]
    assert names[:2] == ["amx", "avx512"]
    refused = [one.name for one in available("x86_64", FEATURES, lambda: "no")]
    assert refused == names[1:]
    monkeypatch.setattr(instruction_sets, "cpu_features", lambda: FEATURES)
    monkeypatch.setattr(instruction_sets, "available", lambda: (BY_NAME["avx512"],))
    monkeypatch.setattr(instruction_sets, "refuse_tiles", lambda: "the system says no")
    with pytest.raises(KernelsError, match="amx: the system says no; expected avx512"):
        check_available("amx")


def test_the_system_is_not_asked_for_tiles_that_the_processor_lacks():
    def fail():
        raise AssertionError("asked")

    assert available("x86_64", FEATURES - {"amx_tile"}, fail)[0].name == "avx512"
    assert available("aarch64", FEATURES, fail)[0].name == "plain"


def test_emulated_tiles_are_used_only_where_they_are_named():
    assert all(not one.emulated for one in available())
    check_available("amx_emulated")


@pytest.mark.parametrize("name", ["W8A8", "W4A8"])
@pytest.mark.parametrize(
    "tiles", [pytest.param("amx", marks=NEEDS_AMX), pytest.param("amx_emulated", marks=WHOLE)]
)
def test_logits_of_a_prompt_are_those_without_tiles_bit_for_bit(
    kernels, kernels_directory, tmp_path, tiles, name
):
    """600 tokens of the embedded model, many rows at a time."""
    with CheckpointWriter(tmp_path / "quantized", POCKET) as writer:
        samples = [np.arange(64) % 256]
        quantize_checkpoint(open_checkpoint(POCKET), writer, recipe(name), samples)
    engine = Engine(open_checkpoint(tmp_path / "quantized"), native=True)
    tokens = np.random.default_rng(0).integers(0, 256, 600).tolist()
    vector = BY_NAME[tiles].vector  # floats are rounded in its order
    lanes = next(
        one for one in kernels if (BY_NAME[one].vector, BY_NAME[one].matmul) == (vector, "lanes")
    )
    try:
        found = {}
        for choice in (tiles, lanes):
            assert library.choose_kernels(choice, kernels_directory)
            found[choice] = engine.forward(tokens)
    finally:
        library.choose_kernels("auto", kernels_directory)
    assert np.isfinite(found[tiles]).all()
    np.testing.assert_array_equal(found[tiles], found[lanes])
