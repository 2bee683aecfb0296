"""The three levels together: a table, the first mismatch, a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

import reference.model
from compare.check import Check
from compare.layers import check_block, inputs_of_block
from compare.model import ModelFigures, check_model
from compare.ops import check_integer_products, check_linear, check_scales
from fast.engine import Engine
from reference.checkpoint import Checkpoint, load_weights
from reference.generate import Stop, check_fits
from reference.linear import Linear
from reference.model import Weights

PROMPT_LENGTH = 600
Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Report:
    """Every check that was made, in order."""

    name: str
    checks: tuple[Check, ...]
    figures: ModelFigures

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
            "checks": len(self.checks),
            "layers": self.rows(),
            "figures": {k: finite(v) for k, v in asdict(self.figures).items()},
        }

    def table(self) -> str:
        """For people."""
        lines = [self.name, HEADER, "-" * len(HEADER)]
        lines += [as_line(row) for row in self.rows()]
        f = self.figures
        lines.append(
            f"logits of {f.tokens} tokens: max error {f.max_error:.2e}, mean {f.mean_error:.2e},"
            f" range {f.range:.1f}; KL mean {f.mean_kl:.2e}, max {f.max_kl:.2e}; top-1 {f.top1:.2%}"
        )
        first = self.first_mismatch
        if first is not None:
            return "\n".join([*lines, f"DIFFER: {first}"])
        return "\n".join([*lines, f"AGREE: {len(self.checks)} checks on three levels"])


HEADER = (
    f"{'level':8}{'layer':>6}{'checks':>8}{'max error':>12}{'of tolerance':>14}"
    f"{'ulps':>10}{'off by one':>12}{'cosine':>14}  worst part"
)


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
        f"{float(row['worst']):>14.3f}{float(row['ulps']):>10.3g}{row['off_by_one']:>12}"
        f"{float(row['cosine']):>14.9f}  {row['part']}"
    )


def random_tokens(vocab_size: int, length: int) -> list[int]:
    """The prompt where none is given: drawn with a fixed seed."""
    return np.random.default_rng(0).integers(0, vocab_size, length).tolist()


def run(checkpoint: Checkpoint, prompt_tokens: Sequence[int] | None = None) -> Report:
    """Compare the fast engine with the reference on a checkpoint and a prompt.

    The prompt is cut to the model's length, or to 600 tokens: longer than a prefill chunk.
    """
    config = checkpoint.config
    length = min(PROMPT_LENGTH, config.max_positions)
    tokens = list(prompt_tokens or random_tokens(config.vocab_size, length))[:length]
    check_fits(config, [tokens], Stop(0), config.max_positions)
    lazy = load_weights(checkpoint)
    weights = replace(lazy, blocks=list(lazy.blocks))
    checks = [*check_integer_products(), check_scales()]
    checks += check_blocks(checkpoint, weights, tokens)
    engine = Engine(checkpoint)
    quantized = any(
        layer.activation != "float" for block in weights.blocks for layer in linears(block).values()
    )
    whole, figures = check_model(config, weights, engine, tokens, quantized)
    return Report(str(checkpoint.path), tuple([*checks, *whole]), figures)


def linears(block: reference.model.Block) -> dict[str, Linear]:
    return {part: layer for part, layer in vars(block).items() if isinstance(layer, Linear)}


def check_blocks(checkpoint: Checkpoint, weights: Weights, tokens: Sequence[int]) -> list[Check]:
    """Levels 1 and 2, block after block along the reference's own hidden states."""
    config, checks = checkpoint.config, []
    x = reference.model.embed(config, weights, np.asarray(tokens), np.arange(len(tokens)))
    for layer, block in enumerate(weights.blocks):
        seen = inputs_of_block(config, block, x)
        for part, linear in linears(block).items():
            checks += check_linear(layer, part, linear, seen[part])
        checks += check_block(config, layer, block, x, seen)
        x = seen["out"]
    narrow = x[:, : weights.head.weight.shape[1]]
    checks += check_linear(None, "head", weights.head, np.ascontiguousarray(narrow))
    return checks
