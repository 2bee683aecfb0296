"""The adapter asks the engine, and nobody else: mistakes that are made in fast/ itself are seen.

Every other mutation changes a subject's answers (tests/compare/mutations.py); these few prove that
the answers come from where the engine computes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.compare.conformance.fast_engine import fast_engine
from planish.compare.conformance.kernels import check_kernels
from planish.fast.model import transformer as fast_transformer
from planish.fast.model import weights as fast_weights
from planish.fast.native import linear as native_linear
from planish.fast.session.engine import Engine
from planish.fast.xla import linear as fast_linear
from planish.reference.linear import Linear


@pytest.fixture
def mutate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """mutate(module, name, around): around is given the original; no program outlives the test."""
    jax.clear_caches()

    def wrap(module: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: around(original, *a, **k))

    yield wrap
    monkeypatch.undo()
    jax.clear_caches()


def test_level_1_sees_how_weights_are_placed(judge, mutate):
    mutate(fast_weights, "place_linear", lambda place, layer: replace(place(layer), bias=None))
    first = judge("opt", "float", [1]).first_mismatch
    assert first is not None and (first.level, first.part) == (1, "q, bias")


@pytest.mark.whole
def test_level_1_sees_how_activations_are_quantized(judge, mutate):
    mutate(fast_linear, "int8_codes", lambda codes, x, s: jnp.trunc(x / s).astype(jnp.int8))
    first = judge("llama", "W8A8", [1]).first_mismatch
    assert first is not None and first.part == "q, real rows, activation codes"


@pytest.mark.whole
def test_level_1_sees_what_a_kernel_is_handed(subjects, kernels, mutate):
    def one_too_high(arguments: Any, layer: Linear) -> list[Any]:
        found = list(arguments(layer))
        if layer.weight.zero_point is not None:
            found[2] = found[2] + jnp.uint8(1)
        return found

    mutate(native_linear, "weight_arguments", one_too_high)
    ops = fast_engine(subjects("llama", "W4A8-minmax"), True).ops
    ops.variants = ops.variants[:1]
    checks = list(check_kernels(ops, cases=2))
    assert {check.agrees for check in checks if "zero points" in check.part} == {False}
    assert {check.agrees for check in checks if "zero points" not in check.part} == {True}


@pytest.mark.matrix(2)
def test_level_2_sees_the_model_in_both_forms(judge, mutate, native):
    def unclipped(heads: Any, config: Any, *rest: Any) -> Any:
        return heads(replace(config, qkv_clip=None), *rest)

    mutate(fast_transformer, "clip_and_normalize", unclipped)
    recipe = "naive-W8A8" if native else "float"
    first = judge("mpt-clipped-scaled-six-heads", recipe, [2], native).first_mismatch
    assert first is not None and (first.level, first.part) == (2, "attention")


@pytest.mark.whole
def test_level_3_sees_the_engine(judge, mutate):
    def late(step: Any, engine: Any, tokens: Any, positions: np.ndarray, cache: Any) -> Any:
        return step(engine, tokens, positions + 1, cache)

    mutate(Engine, "decode_step", late)
    first = judge("llama", "W8A8", [3]).first_mismatch
    assert first is not None and first.part.startswith("decode at slot 58 of 64")
