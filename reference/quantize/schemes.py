"""Which scheme each linear of a model gets, and whether a recipe's patterns fit the model.

A pattern (recipe.py) may use any of the names that a linear goes by:

    h.0.attn.c_attn.q              where planish writes it, and `inspect` shows it afterwards
    h.0.attn.c_attn                in the source; the name of q, k and v where they are fused
    transformer.h.0.attn.c_attn    the module's, where this checkpoint leaves a prefix off
    ...block_sparse_moe.experts.w1 that of all experts together, as they are written
    lm_head                        the head, whatever the source calls it

Linears that are fused in the source are cut and written one by one, so each may have a scheme of
its own. The experts of a layer are stored in one piece: those of one part (gate, up or down) have
one scheme, and a layer's are quantized all or none. Routers stay in float: a code that is off by
one would choose another expert.
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


def names_of(checkpoint: Checkpoint, part: str, layer: int | None = None) -> set[str]:
    """Every name that a part of the model goes by; an expert's own is that in the source."""
    source = checkpoint.source(part, layer).name
    names = {source, checkpoint.prefix(split_expert(part)[0], layer)}
    names |= {HEAD} if part == "head" else set()
    return names | {f"{checkpoint.left_off}{name}" for name in names}


def linear_names(checkpoint: Checkpoint, layer: int) -> dict[str, str]:
    """How a block's linears are called in errors: where planish writes them."""
    parts = block_shapes(checkpoint.config, layer)
    return {part: checkpoint.prefix(part, layer) for part in parts}


def block_schemes(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> dict[str, Scheme | None]:
    """The scheme of every linear of a block by its name there; None for one that stays in float."""
    return {
        part: None if part == "router" else recipe.scheme_of(*names_of(checkpoint, part, layer))
        for part in block_shapes(checkpoint.config, layer)
    }


def head_scheme(checkpoint: Checkpoint, recipe: Recipe) -> Scheme | None:
    """The scheme of lm_head."""
    return recipe.scheme_of(*names_of(checkpoint, "head"))


def written_schemes(checkpoint: Checkpoint, recipe: Recipe) -> dict[str, Scheme | None]:
    """The scheme of every linear by the name under which planish writes it; that of all experts
    of a layer together, even of those in float, which are written one by one."""
    found: dict[str, Scheme | None] = {}
    for layer in range(checkpoint.config.num_layers):
        for part, scheme in block_schemes(checkpoint, recipe, layer).items():
            found[checkpoint.prefix(split_expert(part)[0], layer)] = scheme
    return found | {checkpoint.prefix("head"): head_scheme(checkpoint, recipe)}


def check_schemes(checkpoint: Checkpoint, recipe: Recipe) -> None:
    """Raise RecipeError for a pattern without a match, or one that contradicts the rest.

    A pattern for what is never quantized (a router, a norm) does no harm: many published recipes
    have one.
    """
    names = all_names(checkpoint)
    for pattern, scheme in recipe.schemes:
        if not any(matches(pattern, name) for name in names):
            linears = all_names(checkpoint, linears_only=True)
            expected = f"the name of a linear, or a part of one, as {_nearest(pattern, linears)}"
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
    """Raise RecipeError for a scheme that no linear gets, as other patterns come before it."""
    if len(recipe.schemes) == 2 and recipe.schemes[0][1] is None:
        return
    used = {_winner(recipe, names_of(checkpoint, "head"))}
    for layer in range(checkpoint.config.num_layers):
        for part in block_shapes(checkpoint.config, layer):
            if part != "router":
                used.add(_winner(recipe, names_of(checkpoint, part, layer)))
    for pattern, scheme in recipe.schemes[:-1]:
        if scheme is None or (pattern, scheme) in used:
            continue
        if pattern == HEAD:
            problem = f"contradicts lm_head int{scheme.bits}"
            raise RecipeError(problem, name="ignore", found="lm_head")
        expected = "a linear of a block or lm_head that no pattern before it takes"
        raise RecipeError("has no effect", name="scheme", expected=expected, found=repr(pattern))


def _winner(recipe: Recipe, names: Iterable[str]) -> Entry:
    """The entry whose scheme a linear gets."""
    names = [*names]
    return next(entry for entry in recipe.schemes if any(matches(entry[0], n) for n in names))


def _check_head(scheme: Scheme | None) -> None:
    """What the head's input is at once differs between engines, so no scale may depend on it."""
    if scheme is not None and scheme.activation not in HEAD_ACTIVATIONS:
        expected = "activations in float, per_token or per_group; put lm_head=float first"
        raise RecipeError(
            "cannot be that of lm_head", name="scheme", expected=expected, found=scheme
        )


def _check_experts(checkpoint: Checkpoint, recipe: Recipe, layer: int) -> None:
    """A layer's experts are stored in one piece: all quantized or none, one scheme a part."""
    schemes = block_schemes(checkpoint, recipe, layer)
    experts = {part: s for part, s in schemes.items() if split_expert(part)[1] is not None}
    floats = [part for part, scheme in experts.items() if scheme is None]
    if floats and len(floats) < len(experts):
        problem = "leaves some experts of a layer in float"
        expected = "all of them or none, as with layers.3.*.experts"
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
