"""Give the tensors of another program's checkpoint the names and forms of planish's own format.

After this nothing else knows who wrote a directory: it is checked, run, quantized, compared and
inspected as if planish had written it in the canonical layout, with one target for each linear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from planish.reference.files.entries import Declared
from planish.reference.files.formats.stored import Source, Stored, planish_entries
from planish.reference.files.safetensors import TensorEntry
from planish.reference.scheme import Scheme


class Reader(Protocol):
    """A format of another program, which is only read."""

    @property
    def KINDS(self) -> tuple[str, ...]:  # noqa: N802  (a constant of the module)
        """The kinds of tensors that a linear may have, in addition to its bias."""

    def made_by(self, source: Source) -> str:
        """The program and its version, as far as the directory says."""

    def linears(self, source: Source) -> list[str]:
        """The prefixes of the linears (and embeddings) that are stored in this format."""

    def read(self, source: Source, prefix: str) -> Stored:
        """A linear's scheme, and how its arrays are computed from the file's.

        Raises CheckpointError or ConfigError if that cannot be done without changing a number.
        """


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Which program wrote a directory, in which format, and the tensors of its linears."""

    format: str
    made_by: str
    bytes: Mapping[str, int]  # prefix -> bytes of a linear in the file


def translate(
    name: str, reader: Reader, source: Source
) -> tuple[dict[str, TensorEntry], Declared | None, Origin]:
    """The tensors under planish's names, what planish's config would declare, and the origin.

    Nothing is declared if all weights are floats (FP8). Raises ConfigError if there are no linears
    in the format that the config declares.
    """
    entries, targets = dict(source.entries), dict[str, Scheme]()
    sizes, head = dict[str, int](), None
    prefixes = reader.linears(source)
    if not prefixes:
        expected = f"linears with {', '.join(reader.KINDS[:3])}, as {name} has"
        raise source.bad("quant_method", expected, repr(source.values.get("quant_method")))
    for prefix in prefixes:
        stored = reader.read(source, prefix)
        found = [f"{prefix}.{kind}" for kind in reader.KINDS if f"{prefix}.{kind}" in entries]
        file = entries[found[0]].file
        sizes[prefix] = sum(entries.pop(one).size for one in found)
        made = planish_entries(file, stored)
        entries |= {f"{prefix}.{kind}": entry for kind, entry in made.items()}
        if stored.scheme is not None:
            targets[prefix] = stored.scheme
        head = stored.head or head
    if head is not None:
        add_tied_head(source, head, entries, targets)
    declared = Declared(layout="canonical", targets=targets) if targets else None
    return entries, declared, Origin(format=name, made_by=reader.made_by(source), bytes=sizes)


def add_tied_head(
    source: Source, head: Stored, entries: dict[str, TensorEntry], targets: dict[str, Scheme]
) -> None:
    """Add lm_head with the codes of the embedding to which it is tied.

    Not to a model that has no other codes: it is one in floats, which can be quantized.
    """
    if source.tied_head is None or head.scheme is None or not targets:
        return
    made = planish_entries(source.path, head)
    entries |= {f"{source.tied_head}.{kind}": entry for kind, entry in made.items()}
    targets[source.tied_head] = head.scheme
