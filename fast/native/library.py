"""Loads the compiled kernels and registers them with XLA, once in a process.

XLA's FFI targets are global to the process, so this module mirrors them in one piece of global
state: which libraries have been loaded.
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

from planish.fast.native.build import FFI, CacheError, build, build_best
from planish.fast.native.instruction_sets import BY_NAME, available, check_available
from planish.reference.errors import KernelsError, notice

TARGETS = (
    "planish_linears",
    "planish_dense",
    "planish_norm",
    "planish_route",
    "planish_experts",
    "planish_attention",
    "planish_sample",
    "planish_roofline",
)


@dataclass
class Library:
    """The loaded libraries.

    sets: instruction sets, the default first. best: the one that `auto` means, once it is known.
    """

    ffi: ctypes.CDLL
    sets: list[str] = field(default_factory=list)
    best: str | None = None


_lock = threading.Lock()
_loaded: list[Library] = []  # none or one


def load_library(cache: Path | None, sets: Sequence[str] | None = None) -> Library:
    """Compile what is missing, load it and register it.

    sets: instruction sets; by default the best one that a compiler here can compile. cache: the
    directory of compiled libraries; if it is None or cannot keep them, they are compiled for this
    process only. A notice says what was compiled. Raises KernelsError.
    """
    for name in sets or ():
        check_available(name)
    with _lock:
        loaded = _loaded[0].sets if _loaded else []
        missing = [name for name in sets or () if name not in loaded]
        if missing or not loaded:
            _load_into(cache, missing)
        return _loaded[0]


def choose_kernels(choice: str, cache: Path | None) -> bool:
    """Whether the native kernels are used: `native` insists, `xla` declines, `auto` tries.

    An instruction set's name insists on that set. If `auto` cannot load any, a notice says why and
    the portable XLA form is used. Raises KernelsError for the other choices.
    """
    if choice == "xla":
        return False
    try:
        if choice in BY_NAME:
            _prefer(load_library(cache, [choice]), choice)
        else:
            library = load_library(cache)
            _prefer(library, _best(library, cache))
    except KernelsError as problem:
        if choice != "auto":
            raise
        notice(f"kernels: {problem}; the portable XLA form is used")
        return False
    return True


def preferred_set() -> str | None:
    """The instruction set that kernels use unless a call names another; None if none is loaded."""
    return _loaded[0].sets[0] if _loaded and _loaded[0].sets else None


def _best(library: Library, cache: Path | None) -> str:
    """The set that `auto` means, even if others have been loaded before."""
    with _lock:
        if library.best is None and available()[0].name in library.sets:
            library.best = available()[0].name
        if library.best is None:
            _load_into(cache, [])
        assert library.best is not None
        return library.best


def _prefer(library: Library, name: str) -> None:
    """Make a loaded set the default."""
    with _lock:
        library.ffi.planish_prefer_kernels(name.encode())
        library.sets.sort(key=lambda one: one != name)


def _load_into(cache: Path | None, names: Sequence[str]) -> None:
    """Load instruction sets, or the best one if none is named, with or without a cache."""
    why = "nothing is kept"
    if cache is not None:
        try:
            _obtain(cache, names, f"once; kept in {cache}")
        except CacheError as problem:
            why = str(problem)
        else:
            return
    with tempfile.TemporaryDirectory(prefix="planish-kernels-") as directory:
        _obtain(Path(directory), names, f"for this process only: {why}")


def _obtain(cache: Path, names: Sequence[str], kept: str) -> None:
    """Build what is missing in a directory, give notice, and load it."""
    start, best = time.perf_counter(), None
    if len(names) > 1:
        paths, compiled = build(cache, [*([] if _loaded else [FFI]), *names])
    else:
        sets = names or [one.name for one in available()]
        best, paths, compiled = build_best(cache, sets, need_ffi=not _loaded)
    if compiled:
        seconds = time.perf_counter() - start
        notice(f"kernels: compiled {', '.join(compiled)} in {seconds:.1f} s ({kept})")
    _load(paths)
    if not names:
        _loaded[0].best = best


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
        if name in library.sets:
            continue
        part.planish_kernels.restype = ctypes.c_void_p
        table = part.planish_kernels()
        if table is None:
            raise KernelsError("the system does not let this process use it", name=name)
        if not library.ffi.planish_add_kernels(ctypes.c_void_p(table)):
            raise KernelsError("too many instruction sets", name=name)
        library.sets.append(name)
