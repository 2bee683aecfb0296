"""The corpus: CPython's own sources and documentation strings, split by file.

It is on every machine that runs Python, and it is text that a reader of this repository can
judge. Tests, IDLE and generated tables are left out; nothing comes from site-packages.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import sys
import sysconfig
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
        """A hash of the name, so that a file is on the same side whatever else there is."""
        digest = hashlib.sha256(self.name.encode()).digest()
        return int.from_bytes(digest[:4], "big") < HELDOUT_SHARE * 2**32


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
    """What the compiled modules say of themselves, for which there is no source to read."""
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


def fingerprint(documents: list[Document]) -> str:
    """sha256 over names and texts, in order."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.name.encode() + b"\0" + document.text.encode() + b"\0")
    return digest.hexdigest()


def sample_text(documents: list[Document], size: int, most_per_file: int = 6000) -> str:
    """About `size` characters: the beginnings of documents, spread evenly over the list."""
    pieces = [d.text[:most_per_file] for d in sorted(documents, key=lambda d: _order(d.name))]
    text = ""
    for piece in pieces:
        if len(text) >= size:
            break
        text += piece.rstrip() + "\n\n"
    return text


def _order(name: str) -> bytes:
    return hashlib.sha256(b"order" + name.encode()).digest()
