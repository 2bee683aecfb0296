"""Which scheme each linear of a model gets, and whether a recipe's patterns fit the model.

A pattern (recipe.py) may match any of a linear's names:

    h.0.attn.c_attn.q              the name that planish writes, and that `inspect` then shows
    h.0.attn.c_attn                the source's name, which fused q, k and v share
    transformer.h.0.attn.c_attn    the module's full name, if the checkpoint leaves a prefix off
    ...block_sparse_moe.experts.w1 the stacked experts' name, as planish writes it
    lm_head                        the output projection, under any architecture

Linears that are fused in the source are split and written one by one, so each can have its own
scheme. The experts of a layer are stacked: all their gates have one scheme, and so have all ups
and all downs, and either all of a layer's experts are quantized or none. Routers stay in float: a
rounding error could select another expert.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from planish.reference.errors import RecipeError
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.model.shapes import block_kinds, block_shapes, outer_kinds
from planish.reference.model.weights import split_expert
from planish.reference.quantize.recipe import HEAD, Entry, Recipe, matches
from planish.reference.scheme import HEAD_ACTIVATIONS, Scheme


def linear_aliases(checkpoint: Checkpoint, part: str, layer: int | None = None) -> set[str]:
    """Every name that a pattern can match for this linear or norm; an expert has its source's."""
    source = checkpoint.source(part, layer).name
    names = {source, checkpoint.prefix(split_expert(part)[0], layer)}
    names |= {HEAD} if part == "head" else set()
    return names | {f"{checkpoint.left_off}{name}" for name in names}


def linear_names(checkpoint: Checkpoint, layer: int) -> dict[str, str]:
    """The names that errors use for a block's linears: those that planish writes."""
    parts = block_shapes(checkpoint.config, layer)
    return {part: checkpoint.prefix(part, layer) for part in parts}


def block_schemes(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> dict[str, Scheme | None]:
    """The scheme of each linear of a block, by its name in the block; None: it stays in float."""
    return {
        part: None
        if part == "router"
        else recipe.scheme_of(*linear_aliases(checkpoint, part, layer))
        for part in block_shapes(checkpoint.config, layer)
    }


def head_scheme(checkpoint: Checkpoint, recipe: Recipe) -> Scheme | None:
    """The scheme of lm_head."""
    return recipe.scheme_of(*linear_aliases(checkpoint, "head"))


def schemes_to_write(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Scheme | None]:
    """The scheme of every linear by the name that planish writes.

    The experts of a layer share an entry, even those in float, which are written one by one.
    """
    found: dict[str, Scheme | None] = {}
    for layer in range(checkpoint.config.num_layers):
        for part, scheme in block_schemes(checkpoint, recipe, layer).items():
            found[checkpoint.prefix(split_expert(part)[0], layer)] = scheme
    return found | {checkpoint.prefix("head"): head_scheme(checkpoint, recipe)}


def check_schemes(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise RecipeError for a pattern that matches nothing or contradicts the others.

    A pattern for a module that is never quantized (a router, a norm) is accepted: many published
    recipes have one.
    """
    names = all_names(checkpoint)
    for pattern, scheme in recipe.schemes:
        if not any(matches(pattern, name) for name in names):
            linears = all_names(checkpoint, linears_only=True)
            expected = (
                f"the name of a linear, or a part of one, such as {_nearest(pattern, linears)}"
            )
            raise RecipeError(
                "matches nothing in this model",
                name="ignore" if scheme is None else "scheme",
                expected=expected,
                found=repr(pattern),
            )
    _check_used(checkpoint, recipe)
    _check_head(head_scheme(checkpoint, recipe))
    for layer, kind in enumerate(checkpoint.config.layers):
        if kind.experts:
            _check_experts(checkpoint, recipe, layer)


def _check_used(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise RecipeError for a scheme that no linear gets because earlier patterns match first."""
    if len(recipe.schemes) == 2 and recipe.schemes[0][1] is None:
        return
    used = {_winner(recipe, linear_aliases(checkpoint, "head"))}
    for layer in range(checkpoint.config.num_layers):
        for part in block_shapes(checkpoint.config, layer):
            if part != "router":
                used.add(_winner(recipe, linear_aliases(checkpoint, part, layer)))
    for pattern, scheme in recipe.schemes[:-1]:
        if scheme is None or (pattern, scheme) in used:
            continue
        if pattern == HEAD:
            problem = f"contradicts lm_head int{scheme.bits}"
            raise RecipeError(problem, name="ignore", found="lm_head")
        expected = "a linear of a block or lm_head that no earlier pattern matches"
        raise RecipeError("has no effect", name="scheme", expected=expected, found=repr(pattern))


def _winner(recipe: Recipe, names: Iterable[str]) -> Entry:
    """The first entry whose pattern matches: it gives the scheme."""
    names = [*names]
    return next(entry for entry in recipe.schemes if any(matches(entry[0], n) for n in names))


def _check_head(scheme: Scheme | None) -> None:
    """Raise RecipeError for a scale over all tokens: engines batch lm_head's input differently."""
    if scheme is not None and scheme.activation not in HEAD_ACTIVATIONS:
        expected = "activations in float, per_token or per_group; put lm_head=float first"
        raise RecipeError(
            "cannot be used for lm_head", name="scheme", expected=expected, found=scheme
        )


def _check_experts(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> None:
    """Raise RecipeError unless the layer's experts can be stacked: all quantized, same schemes."""
    schemes = block_schemes(checkpoint, recipe, layer)
    experts = {part: s for part, s in schemes.items() if split_expert(part)[1] is not None}
    floats = [part for part, scheme in experts.items() if scheme is None]
    if floats and len(floats) < len(experts):
        problem = "leaves some experts of a layer in float"
        expected = "all of them or none, as layers.3.*.experts does"
        found = checkpoint.prefix(min(floats), layer)
        raise RecipeError(problem, name="ignore", expected=expected, found=found)
    by_part: dict[str, Scheme | None] = {}
    for part, scheme in experts.items():
        if by_part.setdefault(split_expert(part)[0], scheme) != scheme:
            problem = "gives the experts of a layer different schemes"
            expected = "one scheme for all experts' gate, up or down"
            found = checkpoint.prefix(part, layer)
            raise RecipeError(problem, name="scheme", expected=expected, found=found)


def all_names(checkpoint: Checkpoint, linears_only: bool = False) -> dict[str, None]:
    """Every name of every module in model order, or only of those that can be quantized."""
    config, of_block = checkpoint.config, block_shapes if linears_only else block_kinds
    outer = ["head"] if linears_only else [*outer_kinds(config)]
    parts: list[tuple[str, int | None]] = [(part, None) for part in outer]
    for layer in range(config.num_layers):
        parts += [(part, layer) for part in of_block(config, layer)]
    return {name: None for part, layer in parts for name in linear_aliases(checkpoint, part, layer)}


def _nearest(pattern: str, names: Iterable[str]) -> str:
    """Names similar to the pattern, with {i} for layer numbers; if none is, the last components
    of all names."""
    generic = {re.sub(r"\b\d+\b", "{i}", name): None for name in names}
    words = {word: None for name in generic for word in name.split(".")}
    plain = re.sub(r"[^\w.]", "", pattern.removeprefix("re:")).strip(".")
    near = difflib.get_close_matches(plain, [*words, *generic], n=3)
    return ", ".join(near or sorted({name.rpartition(".")[2] for name in generic}))
