"""Read tokenizer.json as bytes, and turn the errors of the library into typed ones."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from planish.reference.errors import PlanishError, TokenizerError
from planish.reference.reading import read_file

BOM = b"\xef\xbb\xbf"  # with which some editors begin a UTF-8 file
_descriptor = (
    threading.Lock()
)  # file descriptor 2 belongs to the process: one thread at a time redirects it
SLOW = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")  # of slow tokenizers


def read_tokenizer_file(file: Path) -> bytes:
    """The bytes of tokenizer.json, without a byte order mark."""
    try:
        content = read_file(file, TokenizerError)
    except FileNotFoundError:
        raise TokenizerError(_missing(file), path=file) from None
    except OSError as problem:
        raise TokenizerError(f"cannot be read: {problem.strerror}", path=file) from None
    if content.startswith(b"version https://git-lfs"):
        raise TokenizerError("is a Git-LFS pointer; run `git lfs pull`", path=file)
    return content.removeprefix(BOM)


def _missing(file: Path) -> str:
    """Say why there is no tokenizer.json, and what to do."""
    if file.is_symlink():
        return f"is a link to {file.readlink()}, which does not exist"
    slow = any((file.parent / name).exists() for name in SLOW)
    path = str(file.parent)
    save = f"AutoTokenizer.from_pretrained({path!r}).save_pretrained({path!r})"
    hint = f"; save it with a fast tokenizer of transformers: {save}" if slow else ""
    return f"no such file{hint}"


@contextlib.contextmanager
def library_errors(path: Path | None, problem: str) -> Iterator[None]:
    """Turn the library's errors, panics of its Rust code included, into TokenizerError.

    A panic derives from BaseException, as Ctrl-C does, and its class is known only by its name.
    """
    try:
        yield
    except (PlanishError, MemoryError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{problem}: {error}", path=path) from None
        raise


@contextlib.contextmanager
def hide_panics() -> Iterator[None]:
    """Hold back what is written to file descriptor 2, and drop it if there is an error.

    Rust prints a page about a panic before Python sees the error, and only here can it be kept
    from the user, who gets one line. If there is no error, everything is written at the end.
    """
    with _descriptor, contextlib.ExitStack() as stack:
        page = None
        with contextlib.suppress(
            OSError
        ):  # descriptor 2 is closed, or no disk has room for the page
            saved = os.dup(2)
            stack.callback(os.close, saved)
            page = stack.enter_context(tempfile.TemporaryFile())
        if page is None:
            yield
            return
        os.dup2(page.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
        page.seek(0)
        with contextlib.suppress(OSError):
            os.write(2, page.read())
