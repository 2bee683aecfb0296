"""Compiles the kernels with the system's C++ compiler on first use, and keeps the libraries.

Each part is a separate shared library: `ffi`, which XLA calls and which depends on the headers
of the installed jaxlib, and one for each instruction set. A library's name contains a hash of its
inputs (sources, flags, compiler, jaxlib), so a stale one is never found. It is written under
another name and then renamed, so two processes that start at once both get a complete file. It
ends in the SHA-256 of its content, which loaders ignore: loading a library that a full disk has
truncated would kill the process, so a damaged one is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from threading import Event

import jax.ffi

from planish.fast.native.instruction_sets import BY_NAME
from planish.reference.errors import KernelsError, notice

SOURCES = Path(__file__).with_name("kernels")
COMPILERS = ("g++", "c++", "clang++")
FLAGS = ("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off")
FFI = "ffi"
TIMEOUT = 300  # seconds for one part
ANSWER_TIMEOUT = 20  # seconds for a compiler to answer --version
STOP_SECONDS = 0.2  # until compilers hear that they are stopped
SYMBOLS = b"planish_"  # prefix of every function that a part exports
SEAL = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler and the first line of its --version."""

    path: str
    version: str


class CacheError(KernelsError):
    """The cache directory cannot keep kernels; they can still be compiled for one process."""


def find_compiler(names: Sequence[str] = COMPILERS) -> Compiler:
    """The first C++ compiler that answers; raises KernelsError if there is none."""
    for compiler in compilers(names):
        return compiler
    raise KernelsError(
        "no C++ compiler was found", expected=f"one of {', '.join(names)} (Debian: apt install g++)"
    )


def compilers(names: Sequence[str] = COMPILERS) -> Iterator[Compiler]:
    """Yield the C++ compilers that answer; a program with two names comes once."""
    seen = set()
    for name in names:
        path = shutil.which(name)
        if path is None or os.path.realpath(path) in seen:
            continue
        seen.add(os.path.realpath(path))
        try:
            answer = run_tool([path, "--version"], ANSWER_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired):  # not a program, or one that never ends
            continue
        version = answer.stdout.strip().splitlines()
        if answer.returncode == 0 and version:  # libraries are named after the version
            yield Compiler(path, version[0])


def run_tool(
    arguments: list[str], timeout: float, stopped: Event | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a compiler in English; bytes that are not UTF-8 are replaced.

    Raises subprocess.TimeoutExpired when its time is over or `stopped` is set. It runs in a session
    by itself, so that the programs that it starts (cc1plus, as) end with it.
    """
    with subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    ) as process:
        try:
            out, problem = read_output(process, timeout, stopped or Event())
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, problem)


def read_output(process: subprocess.Popen[str], timeout: float, stopped: Event) -> tuple[str, str]:
    """Both outputs of a process, to their ends."""
    end = time.monotonic() + timeout
    while not stopped.is_set() and (left := end - time.monotonic()) > 0:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=min(left, STOP_SECONDS))
    raise subprocess.TimeoutExpired(process.args, timeout)


def understands(compiler: Compiler, name: str) -> bool:
    """Whether a compiler knows an instruction set's flags, asked with an empty source."""
    *flags, _ = command(compiler, name)
    arguments = [*flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return run_tool(arguments, ANSWER_TIMEOUT).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def source_of(part: str) -> Path:
    """The C++ source that a part is compiled from."""
    return SOURCES / ("ffi.cc" if part == FFI else "instruction_set.cc")


def all_sources() -> list[Path]:
    """Every source file of the kernels."""
    return sorted((*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cc")))


def check_sources(parts: Sequence[str]) -> None:
    """Raises KernelsError if the installation lacks the parts' C++ sources."""
    for path in map(source_of, parts):
        if not path.is_file():
            raise KernelsError("the installation lacks this source of the kernels", path=path)


def command(compiler: Compiler, part: str, extra: Sequence[str] = ()) -> list[str]:
    """The command that compiles a part, `ffi` or an instruction set, without its output."""
    headers = ["-isystem", jax.ffi.include_dir()] if part == FFI else []
    return [compiler.path, *flags_of(part), *headers, *extra, str(source_of(part))]


def flags_of(part: str) -> list[str]:
    """The flags that decide a part's code; they contain no path of this machine."""
    if part == FFI:
        return [*FLAGS, "-O2", "-pthread"]
    return [*FLAGS, *BY_NAME[part].definitions, *BY_NAME[part].flags]


def library_path(cache: Path, compiler: Compiler, part: str) -> Path:
    """The path of a part's library, named after a hash of all its inputs.

    Two clones or environments with the same sources, compiler and jaxlib share a library.
    """
    digest = hashlib.sha256()
    for path in all_sources():
        name = path.relative_to(SOURCES).as_posix()
        digest.update(name.encode() + b"\0" + path.read_bytes() + b"\0")
    made_by = [*flags_of(part), compiler.version]
    made_by += [version("jaxlib")] if part == FFI else []
    made_by += ["sealed"]
    digest.update("\0".join(made_by).encode())
    return cache / f"{part}-{digest.hexdigest()[:16]}.so"


def build(
    cache: Path, parts: Sequence[str], compiler: Compiler | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Compile the libraries that are not cached; return all paths and the parts compiled now.

    Raises KernelsError if there is no compiler or it fails, CacheError if the directory cannot keep
    libraries. The parts that could be compiled are kept even then.
    """
    check_sources(parts)
    compiler = compiler or find_compiler()
    paths = {part: library_path(cache, compiler, part) for part in parts}
    missing = [part for part in parts if not is_whole(paths[part])]
    if missing:
        check_writable(cache)
        compile_all(compiler, {part: paths[part] for part in missing})
    return paths, missing


def compile_all(compiler: Compiler, targets: Mapping[str, Path]) -> None:
    """Compile parts at the same time. Ctrl-C ends the compilers, which a terminal does not tell."""
    stopped = Event()
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        try:
            list(pool.map(lambda one: compile_part(compiler, one, targets[one], stopped), targets))
        except (KeyboardInterrupt, SystemExit):
            stopped.set()
            raise


def build_best(
    cache: Path, names: Sequence[str], need_ffi: bool
) -> tuple[str, dict[str, Path], list[str]]:
    """Build the first of the instruction sets that a compiler here can compile.

    An old compiler does not know the newest sets. If it cannot compile `ffi`, which needs no set,
    the next compiler is tried. Returns the set, the paths of the libraries and the parts that were
    compiled. Raises the first KernelsError if no compiler can compile any.
    """
    first: KernelsError | None = None
    for compiler in compilers():
        for name in names:
            parts = [FFI, name] if need_ffi else [name]
            try:
                found = name, *build(cache, parts, compiler)
            except CacheError:
                raise
            except KernelsError as problem:
                first = first or problem
                if need_ffi and not is_whole(library_path(cache, compiler, FFI)):
                    break
            else:
                if first is not None:
                    notice(f"kernels: {first}; {name} is used, compiled by {compiler.version}")
                return found
    find_compiler()  # raises if there is none
    raise first or KernelsError("the C++ compiler has disappeared")


def plan(cache: Path | None, names: Sequence[str]) -> tuple[str, Compiler, bool]:
    """What build_best would use, without compiling: set, compiler, whether it is compiled already.

    A compiler that accepts a set's flags may still fail. Raises KernelsError.
    """
    check_sources([FFI, *names])
    for compiler in compilers():
        for name in names:
            parts = (library_path(cache or Path(), compiler, part) for part in (FFI, name))
            is_built = cache is not None and all(map(is_whole, parts))
            if is_built or understands(compiler, name):
                return name, compiler, is_built
    version = find_compiler().version
    raise KernelsError(f"{version} cannot compile for", name=", ".join(names))


def check_writable(cache: Path) -> None:
    """Make the directory if it is missing; raises CacheError if it cannot keep libraries."""
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
        runs = not os.statvfs(cache).f_flag & getattr(os, "ST_NOEXEC", 0)
    except OSError as problem:
        raise CacheError(f"cannot be written: {problem.strerror}", path=cache) from None
    if not runs:
        raise CacheError("no program there may run (it is mounted noexec)", path=cache)


def compile_part(compiler: Compiler, part: str, target: Path, stopped: Event) -> None:
    """Compile in a temporary directory, then keep the library."""
    try:
        with tempfile.TemporaryDirectory(prefix="planish-kernels-") as directory:
            made = Path(directory, target.name)
            run = run_tool([*command(compiler, part), "-o", str(made)], TIMEOUT, stopped)
            if run.returncode != 0 or not made.exists():
                raise _failed(compiler, part, run.stderr)
            library = made.read_bytes()
            if SYMBOLS not in library:
                raise _failed(compiler, part, "it reports no error and makes no library")
    except subprocess.TimeoutExpired:
        raise _failed(compiler, part, f"not done after {TIMEOUT} s") from None
    except OSError as problem:
        raise _failed(compiler, part, str(problem)) from None
    keep(library, target)


def keep(library: bytes, target: Path) -> None:
    """Write a library and its hash, sync, rename, read back; raises CacheError."""
    made: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=target.parent, prefix=".building-", delete=False
        ) as file:
            made = Path(file.name)
            file.write(library + hashlib.sha256(library).digest())
            file.flush()
            os.fsync(file.fileno())
        made.replace(target)
    except OSError as problem:
        raise CacheError(f"cannot be written: {problem.strerror}", path=target) from None
    finally:
        if made is not None:
            made.unlink(missing_ok=True)
    if not is_whole(target):
        raise CacheError("was written and does not read back", path=target)


def is_whole(path: Path) -> bool:
    """Whether a library exists, belongs to the user, and ends in the hash of its content.

    A notice says why an existing library is not used.
    """
    try:
        content, status = path.read_bytes(), path.stat()
    except OSError:
        return False
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        notice(f"kernels: {path} belongs to others, or they can write it, and is not used")
        return False
    whole = hashlib.sha256(content[:-SEAL]).digest() == content[-SEAL:]
    if not whole:
        notice(f"kernels: {path} is damaged and not used")
    return whole


def _failed(compiler: Compiler, part: str, text: str) -> KernelsError:
    lines = [line for line in text.splitlines() if "error" in line] or text.splitlines() or [""]
    problem = f"{compiler.version} could not compile the {part} kernels"
    return KernelsError(problem, found=lines[0].strip() or "no output")
