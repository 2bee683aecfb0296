"""The C++ part of `make lint`: clang-format, and the compiler's warnings as errors.

Each instruction set is parsed with its flags by the first compiler that knows them, whether this
processor runs it or not; NEON needs Debian's g++-aarch64-linux-gnu.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from planish.fast.native.build import (
    FFI,
    SOURCES,
    Compiler,
    all_sources,
    command,
    compilers,
    understands,
)
from planish.fast.native.instruction_sets import INSTRUCTION_SETS

HERE = Path(__file__).parent
CROSS = "aarch64-linux-gnu-g++"
WARNINGS = ("-fsyntax-only", "-Wall", "-Wextra", "-Werror")


def main() -> int:
    sources = [*all_sources(), *sorted((*HERE.rglob("*.h"), *HERE.rglob("*.cc")))]
    clang_format = str(Path(sys.executable).with_name("clang-format"))
    failed = run(clang_format, "--dry-run", "-Werror", *map(str, sources))
    for name, arguments in list_commands():
        print(f"lint: {name}", flush=True)
        failed |= run(*arguments)
    return int(failed)


def list_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield what to parse, and the command that parses it."""
    native = next(compilers())
    yield FFI, command(native, FFI, WARNINGS)
    check = str(HERE / "kernels_check.cc")
    yield "kernels_check", [native.path, "-std=c++17", f"-I{SOURCES}", *WARNINGS, check]
    cross = shutil.which(CROSS)
    for one in INSTRUCTION_SETS:
        for compiler in [native, *([Compiler(cross, CROSS)] if cross else [])]:
            if understands(compiler, one.name):
                yield f"{one.name} by {compiler.path}", command(compiler, one.name, WARNINGS)
                break
        else:
            print(f"lint: {one.name} is left out: no compiler here knows its flags")


def run(*arguments: str) -> bool:
    """Run a program and show its output; whether it failed."""
    return subprocess.run(arguments, check=False).returncode != 0


if __name__ == "__main__":
    sys.exit(main())
