"""What the command claims of jax for its whole process."""

from __future__ import annotations

import warnings

import jax

from planish.process import use_compilation_cache


def test_a_cache_that_jax_cannot_use_is_not_told_for_every_program(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("in the way")
    try:
        use_compilation_cache(tmp_path / "file")
        warnings.warn("Error writing persistent compilation cache entry for 'x': y", stacklevel=1)
        use_compilation_cache(None)
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        use_compilation_cache(before)
