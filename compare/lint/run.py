"""Apply every rule to a checkpoint, one linear at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from planish.compare.lint.against import LinearError, Original, measure, original_of
from planish.compare.lint.codes import CodeCounts, check_codes, count_codes
from planish.compare.lint.foreign import read_foreign
from planish.compare.lint.fused import check_fused, scheme_words
from planish.compare.lint.gguf_tensors import read_tensors
from planish.compare.lint.groups import check_groups
from planish.compare.lint.linear import Readable, StoredLinear
from planish.compare.lint.names import check_floats, check_names, check_routers
from planish.compare.lint.opened import FLOAT, GGUF, OWN, Opened, open_raw, without_notices
from planish.compare.lint.orders import check_orders
from planish.compare.lint.own import read_own
from planish.compare.lint.rules import Finding
from planish.compare.lint.scales import check_scales
from planish.compare.lint.zeros import check_gptq, check_range
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.formats import READERS
from planish.reference.files.safetensors import forget_pages


@dataclass(frozen=True, kw_only=True)
class Linted:
    """What lint found.

    saturation: the share of codes at the ends of the grid, by linear. errors, skipped: against the
    float model, if there is one, and why other linears could not be compared.
    """

    opened: Opened
    linears: int
    findings: tuple[Finding, ...]
    saturation: dict[str, float] = field(default_factory=dict)
    errors: tuple[LinearError, ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def made_by(self) -> str:
        """The program that wrote it, as far as it says."""
        opened = self.opened
        return READERS[opened.format].made_by(opened.source) if opened.format in READERS else ""


def lint(path: str | Path, allow_links: bool = False, floats: Checkpoint | None = None) -> Linted:
    """Every finding of a directory or GGUF file; ConfigError, CheckpointError if not parsable.

    floats: the float model to compare its weights with.
    """
    opened = open_raw(path, allow_links)
    with without_notices(), np.errstate(all="ignore"):  # damaged numbers are what it looks for
        original = None if floats is None else original_of(opened, floats)
        judged = [judge(opened, one, original) for one in read_linears(opened)]
        schemes = {one.prefix: one.scheme for one in judged}
        whole = check_whole(opened, schemes)
        findings = [*itertools.chain.from_iterable(one.findings for one in judged), *whole]
    errors = {one.prefix: one.error for one in judged if one.error is not None}
    return Linted(
        opened=opened,
        linears=len(schemes),
        findings=tuple(findings),
        saturation={one.prefix: one.saturation for one in judged if one.saturation is not None},
        errors=tuple(error for error in errors.values() if isinstance(error, LinearError)),
        skipped={name: error for name, error in errors.items() if isinstance(error, str)},
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One linear's findings. error: against the float model, or why there is none."""

    prefix: str
    scheme: str  # in words, which fused parts must share
    findings: tuple[Finding, ...]
    saturation: float | None = None
    error: LinearError | str | None = None


def judge(opened: Opened, one: Readable, original: Original | None) -> Judged:
    """Everything about one linear, whose pages leave the memory again."""
    if isinstance(one, Finding):
        error = None if original is None else "cannot be read"
        return Judged(prefix=one.where, scheme="unreadable", findings=(one,), error=error)
    counts = count_codes(one)
    found = Judged(
        prefix=one.prefix,
        scheme=scheme_words(one),
        findings=tuple(check_linear(opened, one, counts)),
        saturation=None if counts is None else counts.saturation,
        error=None if original is None else measure(opened, one, original),
    )
    forget(opened, original)
    return found


def read_linears(opened: Opened) -> Iterator[Readable]:
    """Every quantized linear (and embedding), or the finding that it cannot be read."""
    if opened.format == FLOAT:
        return iter(())
    readers = {GGUF: read_tensors, OWN: read_own}
    return readers.get(opened.format, read_foreign)(opened)


def check_linear(
    opened: Opened, linear: StoredLinear, counts: CodeCounts | None
) -> Iterator[Finding]:
    """Every rule of one linear."""
    dead = None if counts is None else counts.dead
    yield from check_scales(linear, model_dtype(opened), dead)
    yield from check_range(linear)
    yield from check_groups(linear)
    if counts is not None:
        yield from check_codes(linear, counts)
        return
    weight = opened.entries.get(f"{linear.prefix}.weight")
    if weight is not None and weight.dtype == "F8_E4M3":
        yield from check_float8(linear, weight.map())


def check_float8(linear: StoredLinear, weight: np.ndarray) -> Iterator[Finding]:
    """NaN among FP8 weights, by their bits."""
    bad = int(((weight.view(np.uint8) & 127) == 127).sum())
    if bad:
        yield Finding(rule="code-not-a-number", where=linear.prefix, count=bad, total=weight.size)


def check_whole(opened: Opened, schemes: dict[str, str]) -> Iterator[Finding]:
    """Every rule that looks at more than one linear, or at tensors of other kinds."""
    yield from check_gptq(opened)
    yield from check_orders(opened)
    yield from check_fused(opened, schemes)
    yield from check_routers(opened, schemes)
    yield from check_names(opened)
    yield from check_floats(opened, {name.partition("[")[0] for name in schemes})


def model_dtype(opened: Opened) -> str | None:
    """The type that config.json gives the model's floats."""
    found = opened.values.get("dtype", opened.values.get("torch_dtype"))
    return found if isinstance(found, str) else None


def forget(opened: Opened, original: Original | None) -> None:
    """Take the pages of all mapped files out of this process's memory."""
    both = [*opened.entries.values(), *(original.floats.entries.values() if original else ())]
    for entry in {entry.file: entry for entry in both}.values():
        forget_pages(entry.data)
    for tensor in [] if opened.gguf is None else list(opened.gguf.tensors.values())[:1]:
        forget_pages(tensor.data)  # all are views of one mapping
