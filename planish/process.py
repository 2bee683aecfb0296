"""What the command claims of the whole process, and a library may not: jax's settings."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import jax

# what the environment may have set for other programs, and the engine's results or life depend on
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
    """Have this process's jax, before its first use, start the CPU alone and compile for it."""
    for name, value in SETTINGS.items():
        with contextlib.suppress(AttributeError):  # jax retires settings now and then
            set_jax(name, value)


def set_jax(name: str, value: object) -> None:
    """Set one of jax's settings for this process."""
    jax.config.update(name, value)  # type: ignore[no-untyped-call]  # jax gives it no type


def use_compilation_cache(directory: Path | None) -> None:
    """Keep compiled programs in a directory, or nowhere.

    It must be the user's own, for they are trusted. One that cannot be read or written costs
    time only, and jax would say so in two lines for every program.
    """
    words = "Error (reading|writing) persistent compilation cache entry"
    warnings.filterwarnings("ignore", words)
    set_jax("jax_compilation_cache_dir", None if directory is None else str(directory))
    set_jax("jax_persistent_cache_min_compile_time_secs", 0)
    set_jax("jax_persistent_cache_min_entry_size_bytes", -1)
