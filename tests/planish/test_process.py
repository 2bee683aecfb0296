"""What the command claims of jax for its whole process."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import warnings

import jax
import pytest

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


ALLOCATE = """
import ctypes, resource, sys
from planish.process import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def fill():
    address = library.malloc(64 << 20)
    ctypes.memset(address, 1, 64 << 20)
    library.free(address)
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.whole
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_is_freed_is_not_mapped_again():
    faults = {}
    for word in ("keep", "map"):
        command = [sys.executable, "-c", ALLOCATE, word]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        faults[word] = int(done.stdout)
    assert faults["keep"] < 100 < faults["map"]  # 64 MiB have 16,384 pages, if they are small ones
