"""The corpus: CPython's sources and documentation strings, split by file.

Every machine with Python has it, and a reader of this repository can judge it. Tests, IDLE and
generated tables are left out, and so is site-packages.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

LEFT_OUT = re.compile(
    r"(^|/)(site-packages|test|tests|idlelib|lib2to3|ensurepip|__pycache__|turtledemo|pydoc_data)/"
    r"|encodings/(cp|mac|iso|koi|johab|gb|big5|euc|shift)|config-|_sysconfigdata"
)
HELDOUT_SHARE = 0.05


@dataclass(frozen=True)
class Document:
    """One file or help topic; `name` decides its split."""

    name: str
    text: str

    @property
    def heldout(self) -> bool:
        """Decided by a hash of the name, so that a file's split does not depend on other files."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELDOUT_SHARE * 2**32

    @property
    def prose(self) -> bool:
        """Whether it is documentation, not source."""
        return self.name.startswith(("topic/", "builtin/"))


def source_documents() -> list[Document]:
    """The standard library's modules."""
    root = Path(sysconfig.get_path("stdlib"))
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    kept = [name for name in names if not LEFT_OUT.search(name)]
    return [Document(name, (root / name).read_text("utf-8", errors="ignore")) for name in kept]


def topic_documents() -> list[Document]:
    """The language reference as `help()` shows it."""
    return [Document(f"topic/{name}", text) for name, text in sorted(topics.items())]


def docstring_documents() -> list[Document]:
    """The docstrings of modules compiled into the interpreter, which have no Python source."""
    documents = []
    for name in sorted(sys.builtin_module_names):
        module = importlib.import_module(name)
        texts = [
            module.__doc__,
            *(getattr(value, "__doc__", None) for value in vars(module).values()),
        ]
        unique = dict.fromkeys(text for text in texts if isinstance(text, str) and len(text) > 80)
        if unique:
            documents.append(Document(f"builtin/{name}", "\n\n".join(unique)))
    return documents


def corpus() -> list[Document]:
    """Every document, in a fixed order."""
    return [*source_documents(), *topic_documents(), *docstring_documents()]


def fingerprint(documents: Sequence[Document]) -> str:
    """sha256 over names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.name.encode() + b"\0" + document.text.encode() + b"\0")
    return digest.hexdigest()


def sample_text(
    documents: Sequence[Document], size: int, prose_share: float = 0.3, most_per_file: int = 12_000
) -> str:
    """About `size` characters: the starts of documents in a fixed order, prose mixed with code.

    The next document is prose whenever prose has less than its share so far, if any remains.
    """
    waiting = {prose: _ordered(documents, prose) for prose in (True, False)}
    text, prose_length = "", 0
    while len(text) < size and (waiting[True] or waiting[False]):
        prose = bool(waiting[True]) and prose_length <= prose_share * len(text)
        document = waiting[prose or not waiting[False]].pop()
        piece = document.text[: min(most_per_file, size - len(text))].rstrip() + "\n\n"
        text += piece
        prose_length += len(piece) * document.prose
    return text


def _ordered(documents: Sequence[Document], prose: bool) -> list[Document]:
    chosen = [d for d in documents if d.prose == prose]
    return sorted(chosen, key=lambda d: hashlib.sha256(b"order" + d.name.encode()).digest())
