"""Which linears a recipe's `ignore` leaves in float, and whether its patterns fit the model.

A pattern (recipes.py) may use any of the names that a linear goes by:

    h.0.attn.c_attn.q              where planish writes it, and `inspect` shows it afterwards
    h.0.attn.c_attn                in the source; the name of q, k and v where they are fused
    transformer.h.0.attn.c_attn    the module's, where this checkpoint leaves a prefix off
    ...block_sparse_moe.experts.w1 that of all experts together, as they are written
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.model.shapes import block_kinds, block_shapes, outer_kinds
from planish.reference.model.weights import split_expert
from planish.reference.quantize.recipe import Recipe, matches


def names_of(checkpoint: Checkpoint, part: str, layer: int | None = None) -> set[str]:
    """Every name that a part of the model goes by; an expert's own is that in the source."""
    source = checkpoint.source(part, layer).name
    names = {source, checkpoint.prefix(split_expert(part)[0], layer)}
    return names | {f"{checkpoint.left_off}{name}" for name in names}


def linear_names(checkpoint: Checkpoint, layer: int) -> dict[str, str]:
    """How a block's linears are called in errors: where planish writes them."""
    parts = block_shapes(checkpoint.config, layer)
    return {part: checkpoint.prefix(part, layer) for part in parts}


def ignored_parts(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> frozenset[str]:
    """The linears of a block that stay in float, by their names in the block."""
    parts = block_shapes(checkpoint.config, layer) if recipe.ignore else ()
    return frozenset(part for part in parts if recipe.ignores(*names_of(checkpoint, part, layer)))


def check_ignore(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise RecipeError for a pattern without a match, or one that contradicts the rest.

    A pattern for what is never quantized (lm_head by default, a router, a norm) does no harm:
    many published recipes have one.
    """
    if not recipe.ignore:
        return
    names = all_names(checkpoint)
    for pattern in recipe.ignore:
        if not any(matches(pattern, name) for name in names):
            linears = all_names(checkpoint, linears_only=True)
            expected = f"the name of a linear, or a part of one, as {_nearest(pattern, linears)}"
            raise RecipeError(
                "matches nothing in this model",
                name="ignore",
                expected=expected,
                found=repr(pattern),
            )
    if recipe.head != "float" and recipe.ignores(*names_of(checkpoint, "head")):
        raise RecipeError(f"contradicts lm_head {recipe.head}", name="ignore", found="lm_head")
    for layer, kind in enumerate(checkpoint.config.layers):
        if kind.experts:
            _check_experts(checkpoint, recipe, layer)


def _check_experts(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> None:
    """A layer's experts lie together when they are quantized, so it is all of them or none."""
    parts = block_shapes(checkpoint.config, layer)
    experts = [part for part in parts if part.startswith("experts.")]
    ignored = ignored_parts(checkpoint, recipe, layer).intersection(experts)
    if ignored and len(ignored) < len(experts):
        problem = "leaves some experts of a layer in float"
        expected = "all of them or none, as with layers.3.*.experts"
        found = checkpoint.prefix(min(ignored), layer)
        raise RecipeError(problem, name="ignore", expected=expected, found=found)


def all_names(checkpoint: Checkpoint, linears_only: bool = False) -> dict[str, None]:
    """Every name of every part of the model, in its order; or of those that can be quantized."""
    config, of_block = checkpoint.config, block_shapes if linears_only else block_kinds
    outer = ["head"] if linears_only else [*outer_kinds(config)]
    parts: list[tuple[str, int | None]] = [(part, None) for part in outer]
    for layer in range(config.num_layers):
        parts += [(part, layer) for part in of_block(config, layer)]
    return {name: None for part, layer in parts for name in names_of(checkpoint, part, layer)}


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """Names like the pattern, with {i} for numbers as `inspect` writes them; else the last words
    of all names."""
    generic = {re.sub(r"\b\d+\b", "{i}", name): None for name in names}
    words = {word: None for name in generic for word in name.split(".")}
    plain = re.sub(r"[^\w.]", "", pattern.removeprefix("re:")).strip(".")
    near = difflib.get_close_matches(plain, [*words, *generic], n=3)
    return ", ".join(near or sorted({name.rpartition(".")[2] for name in generic}))
