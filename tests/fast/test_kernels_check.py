"""Every instruction set against a naive program in C++ (kernels_check.cc), without JAX.

NEON runs here too where Debian's g++-aarch64-linux-gnu and qemu-user are installed.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from fast.kernels.build import SOURCES, find_compiler
from fast.kernels.instruction_sets import BY_NAME, INSTRUCTION_SETS, available
from reference.errors import KernelsError

CHECK = Path(__file__).with_name("kernels_check.cc")
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def compile_check(compiler: str, name: str, target: Path, *extra: str) -> Path:
    flags = ["-std=c++17", "-ffp-contract=off", "-w", "-pthread", f"-I{SOURCES}", *extra]
    flags += [f"-DPLANISH_ISA={name}", *BY_NAME[name].flags]
    sources = [str(SOURCES / "kernels.cc"), str(CHECK)]
    subprocess.run([compiler, *flags, *sources, "-o", str(target)], check=True)
    return target


@pytest.mark.parametrize("name", [one.name for one in INSTRUCTION_SETS])
def test_an_instruction_set_computes_what_a_naive_program_does(name, tmp_path):
    runner, extra, rounds = [], [], "100"
    if BY_NAME[name] in available():
        try:
            compiler = find_compiler().path
        except KernelsError as problem:
            pytest.skip(str(problem))
    elif name == "neon" and platform.machine() == "x86_64":
        if not (shutil.which(CROSS) and shutil.which(EMULATOR)):
            pytest.skip(f"{CROSS} or {EMULATOR} is not installed")
        compiler, runner, extra, rounds = CROSS, [EMULATOR], ["-static"], "20"
    else:
        pytest.skip("this processor does not run it")
    program = compile_check(compiler, name, tmp_path / "check", *extra)
    run = subprocess.run([*runner, str(program), rounds], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert run.stdout.startswith(f"{name}: ") and run.stdout.endswith(" 0 failures\n")
