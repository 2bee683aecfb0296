"""Process-wide settings of jax and malloc, which the command may change and a library may not."""

from __future__ import annotations

import contextlib
import ctypes
import warnings
from pathlib import Path

import jax

# the environment may set these for other programs; the engine's results or survival depend on them
SETTINGS = {
    "jax_platforms": "cpu",
    "jax_platform_name": "cpu",
    "jax_default_device": None,
    "jax_default_matmul_precision": None,
    "jax_disable_jit": False,
    "jax_enable_x64": False,
    "jax_no_tracing": False,
    "jax_raise_persistent_cache_errors": False,
    "jax_transfer_guard": "allow",
}

# glibc's mallopt: one heap, which no free shrinks, and no mapping of its own for a large buffer
MALLOC = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, 2**31 - 1)}


def claim_jax() -> None:
    """Before jax's first use, restrict it to the CPU and reset what the environment may change."""
    for name, value in SETTINGS.items():
        with contextlib.suppress(AttributeError):  # jax retires settings now and then
            set_jax(name, value)


def set_jax(name: str, value: object) -> None:
    """Set one of jax's settings for this process."""
    jax.config.update(name, value)


def use_compilation_cache(directory: Path | None) -> None:
    """Store compiled programs in a directory, or nowhere.

    It must be the user's own, because programs are trusted. If it cannot be read or written, that
    only costs time, so jax's warnings, two lines for each program, are suppressed.
    """
    words = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", words)
    set_jax("jax_compilation_cache_dir", None if directory is None else str(directory))
    set_jax("jax_persistent_cache_min_compile_time_secs", 0)
    set_jax("jax_persistent_cache_min_entry_size_bytes", -1)


def keep_freed_memory() -> None:
    """Let malloc keep what XLA frees, because the next step of a calibration allocates it again.

    By default glibc maps large buffers anew each time, and the kernel fills each page with zeros:
    2.5 million page faults for 10 steps of SignRound on 4 blocks of SmolLM2, instead of 0.13
    million, and 18 % of the CPU time instead of 3 %. Nothing happens without glibc.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        library = ctypes.CDLL(None)
        for parameter, value in MALLOC.values():
            library.mallopt(parameter, value)
