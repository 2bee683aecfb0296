"""jax's process-wide settings, which the command may change and a library may not."""

from __future__ import annotations

import contextlib
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
