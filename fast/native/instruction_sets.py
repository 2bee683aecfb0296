"""The instruction sets that the kernels are written for, and those that this processor has.

A new one is a row of INSTRUCTION_SETS and one header in kernels/ (docs/kernels.md).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planish.reference.errors import KernelsError

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class InstructionSet:
    """One way to compile the kernels.

    machines: names as platform.machine() gives them; none means any. needs: features that
    /proc/cpuinfo must list. tiles: whether the system must permit AMX's tiles. emulated: whether it
    is for tests, and used only where it is named. flags: the compiler's. vector: the header in
    kernels/vector of its sixteen lanes, struct Vector. matmul: the header in kernels/matmul of its
    products, a struct named after the header (Lanes in lanes.h).
    """

    name: str
    machines: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    tiles: bool = False
    emulated: bool = False
    flags: tuple[str, ...]
    vector: str
    matmul: str = "lanes"

    @property
    def definitions(self) -> tuple[str, ...]:
        """The macros that kernels/instruction_set.cc needs."""
        return (
            f"-DPLANISH_ISA={self.name}",
            f'-DPLANISH_VECTOR="vector/{self.vector}.h"',
            f'-DPLANISH_MATMUL="matmul/{self.matmul}.h"',
            f"-DPLANISH_PRODUCTS={self.matmul.capitalize()}",
        )


_X86 = ("x86_64", "AMD64")
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni")
_AVX512_NEEDS = frozenset("avx512f avx512bw avx512vl avx512dq avx512_vnni fma f16c".split())
_AMX = ("-mamx-tile", "-mamx-int8", "-mamx-bf16")

INSTRUCTION_SETS = (  # the best first
    InstructionSet(
        name="amx",
        machines=_X86,
        needs=_AVX512_NEEDS | {"amx_tile", "amx_int8", "amx_bf16"},
        tiles=True,
        flags=("-O3", *_AVX2, *_AVX512, *_AMX),
        vector="avx512",
        matmul="amx",
    ),
    InstructionSet(
        name="avx512",
        machines=_X86,
        needs=_AVX512_NEEDS,
        flags=("-O3", *_AVX2, *_AVX512),
        vector="avx512",
    ),
    InstructionSet(
        name="avxvnni",
        machines=_X86,
        needs=frozenset("avx2 avx_vnni fma f16c".split()),
        flags=("-O3", *_AVX2, "-mavxvnni"),
        vector="avx2",
    ),
    InstructionSet(
        name="avx2",
        machines=_X86,
        needs=frozenset("avx2 fma f16c".split()),
        flags=("-O3", *_AVX2),
        vector="avx2",
    ),
    InstructionSet(
        name="neon",
        machines=("aarch64", "arm64"),
        needs=frozenset(["asimddp"]),
        flags=("-O3", "-march=armv8.2-a+dotprod+fp16"),
        vector="neon",
    ),
    InstructionSet(name="plain", flags=("-O2",), vector="plain"),
    InstructionSet(
        name="amx_emulated",
        emulated=True,
        flags=("-O1", "-DPLANISH_TILES_EMULATED"),
        vector="plain",
        matmul="amx",
    ),
)
BY_NAME = {one.name: one for one in INSTRUCTION_SETS}


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The features of the first processor; empty if the system does not list them."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


@functools.cache
def refuse_tiles() -> str | None:
    """Ask Linux to let this process use AMX's tiles; why it does not, or None.

    arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), once: permission is for all threads and for
    processes that are forked later (https://docs.kernel.org/arch/x86/xstate.html).
    """
    if sys.platform != "linux":
        return f"no permission to use AMX tiles is known for {sys.platform}"
    arguments = (ctypes.c_long(number) for number in (158, 0x1023, 18))
    if ctypes.CDLL(None, use_errno=True).syscall(*arguments) == 0:
        return None
    reason = os.strerror(ctypes.get_errno())
    return f"the system does not let this process use AMX tiles ({reason})"


def runs(
    one: InstructionSet,
    machine: str,
    features: frozenset[str],
    refusal: Callable[[], str | None] = refuse_tiles,
) -> bool:
    """Whether a processor with these features runs a set; asks for tiles only if it has them."""
    fits = (not one.machines or machine in one.machines) and one.needs <= features
    return fits and not (one.tiles and refusal())


def available(
    machine: str | None = None,
    features: frozenset[str] | None = None,
    refusal: Callable[[], str | None] = refuse_tiles,
) -> tuple[InstructionSet, ...]:
    """The sets that this processor runs, the best first; always with `plain`, never emulated ones.

    refusal: why the system does not let this process use matrix tiles, or None.
    """
    machine = platform.machine() if machine is None else machine
    features = cpu_features() if features is None else features
    return tuple(
        one
        for one in INSTRUCTION_SETS
        if not one.emulated and runs(one, machine, features, refusal)
    )


def explain_tiles() -> str | None:
    """Why matrix tiles that the processor has are not used, or None."""
    needs = next(one.needs for one in INSTRUCTION_SETS if one.tiles)
    return refuse_tiles() if needs <= cpu_features() else None


def check_available(name: str) -> None:
    """Raises KernelsError for a set that this processor does not run; an emulated one runs."""
    names = [one.name for one in available()]
    if name in names or (name in BY_NAME and BY_NAME[name].emulated):
        return
    tiles = name in BY_NAME and BY_NAME[name].tiles
    problem = (explain_tiles() if tiles else None) or "this processor cannot run it"
    raise KernelsError(problem, name=name, expected=", ".join(names))


def candidates(choice: str) -> list[str]:
    """The sets that --kernels allows, the best first: the one it names, or all of this processor's.

    Raises KernelsError for a set that this processor does not run.
    """
    if choice not in BY_NAME:
        return [one.name for one in available()]
    check_available(choice)
    return [choice]
