"""The compiled kernels in this process: loaded once, registered with XLA once.

XLA knows FFI targets by name for the whole process, so this module keeps the one piece of
global state that mirrors it: which libraries have been loaded.
"""

from __future__ import annotations

import ctypes
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax.ffi

from fast.kernels.build import FFI, build
from fast.kernels.instruction_sets import BY_NAME, available
from reference.errors import KernelsError, notice

TARGETS = (
    "planish_linears",
    "planish_route",
    "planish_experts",
    "planish_attention",
    "planish_sample",
    "planish_limits",
)


@dataclass
class Library:
    """What is loaded. `sets` are instruction sets in the order of loading, the default first."""

    ffi: ctypes.CDLL
    sets: list[str] = field(default_factory=list)


_lock = threading.Lock()
_loaded: list[Library] = []  # none or one


def load_library(cache: Path | None, sets: Sequence[str] | None = None) -> Library:
    """Compile what is missing, load it and register it; the best instruction set by default.

    cache: where compiled libraries are kept; None compiles for this process only. A notice says
    that something had to be compiled. Raises KernelsError.
    """
    wanted = list(sets) if sets else [available()[0].name]
    for name in wanted:
        if BY_NAME.get(name) not in available():
            names = ", ".join(one.name for one in available())
            raise KernelsError("this processor does not run", name=name, expected=names)
    with _lock:
        have = [FFI, *_loaded[0].sets] if _loaded else []
        parts = [part for part in (FFI, *wanted) if part not in have]
        if parts and cache is None:
            with tempfile.TemporaryDirectory(prefix="planish-kernels-") as directory:
                _load(_build(Path(directory), parts))
        elif parts:
            assert cache is not None
            _load(_build(cache, parts))
        return _loaded[0]


def choose_kernels(choice: str, cache: Path | None) -> bool:
    """Whether the native kernels are used: `native` insists, `xla` declines, `auto` tries.

    Where `auto` cannot have them a notice says why, and the portable XLA form does everything.
    Raises KernelsError for `native`.
    """
    if choice == "xla":
        return False
    try:
        load_library(cache)
    except KernelsError as problem:
        if choice == "native":
            raise
        notice(f"kernels: {problem}; the portable XLA form is used")
        return False
    return True


def _build(cache: Path, parts: Sequence[str]) -> dict[str, Path]:
    start = time.perf_counter()
    paths, compiled = build(cache, parts)
    if compiled:
        seconds = time.perf_counter() - start
        notice(
            f"kernels: compiled {', '.join(compiled)} in {seconds:.1f} s (once; kept in {cache})"
        )
    return paths


def _load(paths: dict[str, Path]) -> None:
    try:
        opened = {part: ctypes.CDLL(str(path)) for part, path in paths.items()}
    except OSError as problem:
        raise KernelsError(f"cannot be loaded: {problem}") from None
    if FFI in opened:
        for target in TARGETS:
            symbol = getattr(opened[FFI], target)
            jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(symbol), platform="cpu")
        _loaded.append(Library(opened.pop(FFI)))
    library = _loaded[0]
    for name, part in opened.items():
        part.planish_kernels.restype = ctypes.c_void_p
        if not library.ffi.planish_add_kernels(ctypes.c_void_p(part.planish_kernels())):
            raise KernelsError("too many instruction sets", name=name)
        library.sets.append(name)
