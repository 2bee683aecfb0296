"""The three levels together: a table, the first mismatch, a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from planish.compare.conformance.attention import check_attention
from planish.compare.conformance.check import Check
from planish.compare.conformance.kernels import check_kernels
from planish.compare.conformance.layers import check_block, check_ends
from planish.compare.conformance.on_device import Sets
from planish.compare.conformance.ops import check_integer_products, check_linear, check_scales
from planish.compare.conformance.perturbation import (
    IN_FLOATS,
    LEAST,
    LEAST_CACHED,
    Trace,
    tolerances,
)
from planish.compare.conformance.trace import Past, activations, judged_linears, trace_block
from planish.compare.conformance.transformer import Case, ModelFigures, check_model
from planish.fast.native.library import load_library
from planish.fast.session.engine import Engine
from planish.reference import linear as reference_linear
from planish.reference.files.load import Checkpoint, load_weights
from planish.reference.model import transformer as reference_transformer
from planish.reference.model.config import ModelConfig
from planish.reference.model.transformer import PREFILL_CHUNK, KVCache
from planish.reference.model.weights import Weights
from planish.reference.quantize.observe import Progress, no_progress
from planish.reference.text.generate import Stop, check_fits

PROMPT_LENGTH = 600


@dataclass(frozen=True)
class Report:
    """Every check that was made, in order."""

    name: str
    checks: tuple[Check, ...]
    figures: ModelFigures | None  # of level 3
    kernels: Sets = ()  # instruction sets; none where XLA computes everything

    @property
    def agree(self) -> bool:
        return all(check.agrees for check in self.checks)

    @property
    def first_mismatch(self) -> Check | None:
        """The first failure of the lowest level: the one to look at."""
        failed = [check for check in self.checks if not check.agrees]
        return min(failed, key=lambda check: check.level) if failed else None

    def rows(self) -> list[dict[str, Any]]:
        """Per level and layer the worst error, in units of its tolerance, and codes off by one."""
        groups: dict[tuple[int, int | None], list[Check]] = {}
        for item in self.checks:
            groups.setdefault((item.level, item.layer), []).append(item)
        return [summary(level, layer, items) for (level, layer), items in sorted_groups(groups)]

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        first = self.first_mismatch
        return {
            "agree": self.agree,
            "first_mismatch": None if first is None else {**first.as_dict(), "text": str(first)},
            "model": self.name,
            "kernels": list(self.kernels),
            "checks": len(self.checks),
            "layers": self.rows(),
            "figures": self.figures and {k: finite(v) for k, v in asdict(self.figures).items()},
        }

    def table(self) -> str:
        """For people."""
        form = f"kernels: {', '.join(self.kernels)}" if self.kernels else "portable XLA form"
        lines = [f"{self.name} ({form})", HEADER, "-" * len(HEADER)]
        lines += [*(as_line(row) for row in self.rows()), "-" * len(HEADER), LEGEND]
        if self.figures is not None:
            lines.append(in_words(self.figures))
        first = self.first_mismatch
        levels = len({item.level for item in self.checks})
        verdict = f"AGREE: {len(self.checks)} checks on {levels} level{'s' * (levels > 1)}"
        return "\n".join([*lines, verdict if first is None else f"DIFFER: {first}"])


def in_words(f: ModelFigures) -> str:
    """Level 3 in one line."""
    return (
        f"logits of {f.tokens} tokens: max error {f.max_error:.2e}, mean {f.mean_error:.2e},"
        f" range {f.range:.1f}; KL mean {f.mean_kl:.2e}, max {f.max_kl:.2e}; top-1 {f.top1:.2%}"
    )


HEADER = (
    f"{'level':8}{'layer':>6}{'checks':>8}{'max error':>12}{'of tolerance':>14}"
    f"{'off by one':>12}{'cosine':>14}  worst part"
)
LEGEND = """\
of tolerance: the largest error as a share of what rounding explains; above 100% is a difference.
off by one: INT8 codes one step apart at a tie, which is no difference and counts as 100%."""


def sorted_groups(groups: dict[tuple[int, int | None], list[Check]]) -> Any:
    return sorted(groups.items(), key=lambda g: (g[0][0], -1 if g[0][1] is None else g[0][1]))


def finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value


def summary(level: int, layer: int | None, items: Sequence[Check]) -> dict[str, Any]:
    """One row of the table."""
    worst = max(items, key=lambda item: item.worst)
    values = {
        "level": level,
        "layer": layer,
        "checks": len(items),
        "max_error": max(item.max_error for item in items),
        "worst": worst.worst,
        "ulps": worst.ulps,
        "off_by_one": sum(item.off_by_one for item in items),
        "cosine": min(item.cosine for item in items),
        "part": worst.part,
        "agree": all(item.agrees for item in items),
    }
    return {key: finite(value) for key, value in values.items()}


def as_line(row: dict[str, Any]) -> str:
    name = {1: "1 ops", 2: "2 layer", 3: "3 model"}[row["level"]]
    layer = "-" if row["layer"] is None else row["layer"]
    return (
        f"{name:8}{layer:>6}{row['checks']:>8}{float(row['max_error']):>12.2e}"
        f"{float(row['worst']):>14.1%}{row['off_by_one']:>12}"
        f"{float(row['cosine']):>14.9f}  {row['part']}"
    )


def random_tokens(vocab_size: int, length: int) -> list[int]:
    """The prompt where none is given: drawn with a fixed seed."""
    return np.random.default_rng(0).integers(0, vocab_size, length).tolist()


def run(
    checkpoint: Checkpoint,
    prompt_tokens: Sequence[int] | None = None,
    progress: Progress = no_progress,
    levels: Sequence[int] = (1, 2, 3),
    native: bool = False,
) -> Report:
    """Compare the fast engine with the reference on a checkpoint and a prompt.

    `levels` to compare: 1 ops, 2 layers, 3 the whole model. `native`: the kernels instead of the
    portable form; level 1 on every instruction set that is loaded (kernels/library.py; the best
    one where none is), levels 2 and 3 on the first.

    The prompt is cut to the model's length, or to 600 tokens: longer than a prefill chunk. Where
    none is given it is drawn with a fixed seed. Raises PromptError for an empty prompt or a token
    outside the vocabulary.
    """
    config = checkpoint.config
    length = min(PROMPT_LENGTH, config.max_positions)
    if prompt_tokens is None:
        prompt_tokens = random_tokens(config.vocab_size, length)
    tokens = list(prompt_tokens)[:length]
    check_fits(config, [tokens], Stop(0), config.max_positions)
    lazy = load_weights(checkpoint)
    weights = replace(lazy, blocks=list(lazy.blocks))
    sets = tuple(load_library(None).sets) if native else ()
    checks, trace = check_blocks(config, weights, tokens, progress, levels, sets)
    name = str(checkpoint.path)
    if 3 not in levels:
        return Report(name, tuple(checks), None, sets)
    whole, figures = check_model(case_of(checkpoint, weights, trace, native), trace)
    return Report(name, tuple([*checks, *whole]), figures, sets)


def case_of(checkpoint: Checkpoint, weights: Weights, trace: Trace, native: bool) -> Case:
    """The engine, made anew, and the tolerances that the model's grids ask for."""
    config, engine = checkpoint.config, Engine(checkpoint, native)
    kinds = set().union(*(activations(block) for block in weights.blocks))
    in_floats = kinds == {"float"}
    if in_floats and config.kv_cache == "float32":
        allowed = IN_FLOATS
    else:
        allowed = tolerances(config, weights, trace, LEAST_CACHED if in_floats else LEAST)
    return Case(config, weights, engine, allowed, "per_tensor" in kinds)


def check_blocks(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    progress: Progress,
    levels: Sequence[int],
    sets: Sets,
) -> tuple[list[Check], Trace]:
    """Levels 1 and 2, block after block along the reference's hidden states of the first chunk.

    What the reference computes on the way, its cache and its logits, serves level 3.
    """
    checks = [*check_first(sets)] if 1 in levels else []
    first, pasts = np.asarray(tokens[:PREFILL_CHUNK]), list[Past]()
    x = reference_transformer.embed(config, weights, first, np.arange(len(first)))
    for layer, block in enumerate(progress(weights.blocks, "compare blocks")):
        seen, past = trace_block(config, block, x)
        for part, linear in judged_linears(block, seen).items() if 1 in levels else ():
            rows = np.resize(seen[part], (len(x), seen[part].shape[1]))  # few reach an expert
            checks += check_linear(layer, part, linear, rows, sets)
        checks += check_block(config, layer, block, seen, bool(sets)) if 2 in levels else ()
        pasts.append(past)
        x = seen["out"]
    checks += check_outer(config, weights, x, sets) if 1 in levels else ()
    logits = reference_transformer.unembed(config, weights, x)
    if 2 in levels:
        checks += check_ends(config, weights, first, x, logits, bool(sets))
    keys, values = zip(*pasts, strict=True)
    return checks, finish_trace(config, weights, tokens, logits, KVCache(keys, values))


def check_first(sets: Sets) -> Iterator[Check]:
    """Level 1 where no model is needed: the kernels, or XLA's integer products."""
    yield check_scales()
    yield from check_without_model(sets) if sets else check_integer_products()


def check_without_model(sets: Sets) -> Iterator[Check]:
    """The kernels on a thousand random linears, and on caches of many shapes."""
    yield from check_kernels(sets)
    yield from check_attention(sets)


def check_outer(
    config: ModelConfig, weights: Weights, x: np.ndarray, sets: Sets
) -> Iterator[Check]:
    """Level 1 for the linears outside the blocks; x [T, D] serves as rows for the head too."""
    if weights.project_out is not None:
        yield from check_linear(None, "project_out", weights.project_out, x, sets)
        x = reference_linear.linear(x, weights.project_out)
    if weights.project_in is not None:
        yield from check_linear(None, "project_in", weights.project_in, x, sets)
    yield from check_linear(None, "head", weights.head, x, sets)


def finish_trace(
    config: ModelConfig,
    weights: Weights,
    tokens: list[int],
    logits: np.ndarray,
    cache: KVCache,
) -> Trace:
    """The prompt's remaining tokens, if it is longer than a chunk."""
    if len(tokens) > PREFILL_CHUNK:
        rest = np.asarray(tokens[PREFILL_CHUNK:])
        x, _ = reference_transformer.extend(config, weights, rest, cache)
        logits = np.concatenate([logits, reference_transformer.unembed(config, weights, x)])
    return Trace(tokens, logits, cache)
