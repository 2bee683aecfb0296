"""The kernels compiled by the system's C++ compiler on first use, and kept.

Each part is a shared library of its own: `ffi`, which XLA calls and which depends on the headers
of the installed jaxlib, and one for each instruction set. A file's name holds a hash of all that
it was made from (sources, flags, compiler, jaxlib), so a stale one is never found; it is
compiled under another name and renamed into place, so two processes that start at once both end
with a whole file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax.ffi
import jaxlib

from fast.kernels.instruction_sets import BY_NAME
from reference.errors import KernelsError

SOURCES = Path(__file__).parent
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-w")
FFI = "ffi"
TIMEOUT = 300  # seconds for one part


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and what it says of itself."""

    path: str
    version: str


def find_compiler(names: Sequence[str] = COMPILERS) -> Compiler:
    """The first C++ compiler that answers; raises KernelsError where there is none."""
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            return Compiler(path, answer.stdout.splitlines()[0])
    raise KernelsError(
        "no C++ compiler was found", expected=f"one of {', '.join(names)} (Debian: apt install g++)"
    )


def command(compiler: Compiler, part: str, extra: Sequence[str] = ()) -> list[str]:
    """How one part is compiled, but for its output. `part`: `ffi` or an instruction set."""
    if part == FFI:
        headers = ["-isystem", jax.ffi.include_dir()]
        return [compiler.path, *FLAGS, "-O2", *headers, *extra, str(SOURCES / "ffi.cc"), "-pthread"]
    flags = BY_NAME[part].flags
    source = str(SOURCES / "kernels.cc")
    return [compiler.path, *FLAGS, f"-DPLANISH_ISA={part}", *flags, *extra, source]


def library_path(cache: Path, compiler: Compiler, part: str) -> Path:
    """Where a part lies: named after everything that it is made from."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCES.glob("*.h"), *SOURCES.glob("*.cc"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    of = [*command(compiler, part), compiler.version]
    of += [jaxlib.__version__] if part == FFI else []
    digest.update("\0".join(of).encode())
    return cache / f"{part}-{digest.hexdigest()[:16]}.so"


def build(cache: Path, parts: Sequence[str]) -> tuple[dict[str, Path], list[str]]:
    """The parts' libraries, compiled where they are not there yet, and which had to be.

    Raises KernelsError when there is no compiler, it fails, or the directory cannot be written.
    """
    compiler = find_compiler()
    paths = {part: library_path(cache, compiler, part) for part in parts}
    missing = [part for part in parts if not paths[part].exists()]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        list(pool.map(lambda part: compile_part(compiler, part, paths[part]), missing))
    return paths, missing


def compile_part(compiler: Compiler, part: str, target: Path) -> None:
    """Compile beside the target, then rename."""
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as directory:
            made = Path(directory, target.name)
            arguments = [*command(compiler, part), "-o", str(made)]
            run = subprocess.run(
                arguments, capture_output=True, text=True, check=False, timeout=TIMEOUT
            )
            if run.returncode != 0:
                raise _failed(compiler, part, run.stderr)
            os.replace(made, target)
    except subprocess.TimeoutExpired:
        raise _failed(compiler, part, f"not done after {TIMEOUT} s") from None
    except OSError as problem:
        raise KernelsError(f"cannot be written: {problem.strerror}", path=target) from None


def _failed(compiler: Compiler, part: str, text: str) -> KernelsError:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or [""]
    problem = f"{compiler.version} could not compile the {part} kernels"
    return KernelsError(problem, found=lines[0].strip())
