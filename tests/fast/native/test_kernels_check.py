"""Every instruction set against a naive program in C++ (kernels_check.cc), without JAX.

The program is linked with the libraries that the engine loads. NEON is emulated if Debian's
g++-aarch64-linux-gnu and qemu-user are installed.
"""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

from planish.fast.native.build import SOURCES, build, find_compiler
from planish.fast.native.instruction_sets import BY_NAME, available

CHECK = Path(__file__).with_name("kernels_check.cc")
DOCUMENT = Path(__file__).parents[3] / "docs" / "kernels.md"
CROSS, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = ("-std=c++17", "-O1", "-ffp-contract=off", "-pthread", f"-I{SOURCES}")


def compile_program(compiler: str, target: Path, *arguments: str) -> str:
    subprocess.run([compiler, *FLAGS, *arguments, "-o", str(target)], check=True)
    return str(target)


def check(command: list[str], name: str) -> None:
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert re.fullmatch(rf"{name}: \d+ checks passed\n", run.stdout)


@pytest.mark.whole
@pytest.mark.again
def test_every_instruction_set_computes_what_a_naive_program_does(
    kernels, kernels_directory, tmp_path
):
    libraries, _ = build(kernels_directory, kernels)
    compiler = find_compiler().path
    naive = compile_program(compiler, tmp_path / "check.o", "-c", str(CHECK))
    for name in kernels:
        program = compile_program(compiler, tmp_path / name, naive, str(libraries[name]))
        check([program, "60"], name)


@pytest.mark.whole(2)
@pytest.mark.skipif(
    "neon" in [one.name for one in available()], reason="NEON is here, not emulated"
)
@pytest.mark.parametrize(("name", "processor"), [("neon", "max"), ("plain", "cortex-a57")])
def test_emulated_arm_computes_what_a_naive_program_does(tmp_path, name, processor):
    """A Cortex-A57 has no dot product of bytes, so it runs plain C++."""
    for tool in (CROSS, EMULATOR):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)")
    source, one = str(SOURCES / "instruction_set.cc"), BY_NAME[name]
    flags = ["-static", *one.definitions, *one.flags]
    program = compile_program(CROSS, tmp_path / "check", *flags, str(CHECK), source)
    check([EMULATOR, "-cpu", processor, program, "12"], name)


@pytest.mark.skipif(shutil.which("git") is None, reason="git applies the diff")
def test_the_documented_diff_is_an_instruction_set(tmp_path):
    """The diff in docs/kernels.md applies, and the set that it adds compiles."""
    tree, diff = tmp_path / "fast" / "native", tmp_path / "diff"
    shutil.copytree(SOURCES.parent, tree)
    (text,) = re.findall(r"```diff\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    diff.write_text(text)
    subprocess.run(["git", "apply", str(diff)], cwd=tmp_path, check=True)
    rows = runpy.run_path(str(tree / "instruction_sets.py"))["BY_NAME"]
    assert set(rows) == {*BY_NAME, "copy"}
    row, source = rows["copy"], str(tree / "kernels" / "instruction_set.cc")
    compile_program(
        find_compiler().path, Path("/dev/null"), "-fsyntax-only", *row.definitions, source
    )


@pytest.mark.whole
def test_emulated_matrix_tiles_compute_what_a_naive_program_does(kernels_directory, tmp_path):
    """AMX's kernels on any processor; test_tiles.py compares the tiles with the hardware's."""
    libraries, _ = build(kernels_directory, ["amx_emulated"])
    naive = [str(CHECK), str(libraries["amx_emulated"])]
    check([compile_program(find_compiler().path, tmp_path / "check", *naive), "60"], "amx_emulated")
