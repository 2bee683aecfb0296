"""INT8 attention against torch's fake quantization of the same grids, in both engines."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.model.backend import AttentionConfig
from planish.fast.xla.attention import attention_on_codes
from planish.fast.xla.cache import Slots
from planish.fast.xla.scores import CausalMask
from planish.reference.grids import int8_codes
from planish.reference.model.attention import (
    AttentionScales,
    exponentials,
    int8_attention,
    quantize_heads,
    scale_weights,
)
from planish.reference.model.config import Alibi
from planish.reference.model.layers import causal_mask

pytestmark = pytest.mark.optimized  # numbers and programs of XLA's

FILE = Path(__file__).parents[2] / "golden" / "attention" / "int8.npz"
GOLDEN = np.load(FILE)
CASES = json.loads(GOLDEN["cases"].item())
CLOSE = 2e-6  # the softmax in float32; values have a magnitude of 4


def operands(name):
    """Codes of q, k and v under the golden's calibrated scales, or their own."""
    static = CASES[name].get("static", False)
    scales = (GOLDEN[f"{name}/{x}_scale"].reshape(-1)[:1] if static else None for x in "qkv")
    return [quantize_heads(GOLDEN[f"{name}/{x}"], s) for x, s in zip("qkv", scales, strict=True)]


def alibi_of(name):
    slopes = CASES[name].get("slopes")
    return slopes and Alibi(slopes=tuple(slopes))


def scores(name):
    q, k, _ = operands(name)
    tokens, slots = len(q), len(k)
    mask = causal_mask(np.arange(slots - tokens, slots), slots, CASES[name].get("window"))
    return mask, math.sqrt(q.codes.shape[-1]), alibi_of(name), CASES[name].get("cap")


@pytest.mark.parametrize("name", CASES)
def test_the_reference_computes_what_torch_does(name):
    q, k, v = operands(name)
    for x, codes in zip("qkv", (q, k, v), strict=True):
        known = GOLDEN[f"{name}/{x}_scale"]
        assert codes.scale[..., 0] == pytest.approx(known[:1, :1] if codes.static else known)
    w, p_scale = scale_weights(exponentials(q, k, *scores(name)), v)
    weights = int8_codes(w, p_scale).reshape(GOLDEN[f"{name}/codes"].shape)
    assert np.array_equal(weights, GOLDEN[f"{name}/codes"])
    context = int8_attention(q, k, v, *scores(name))
    assert np.abs(context - GOLDEN[f"{name}/context"]).max() < CLOSE


@pytest.mark.whole
@pytest.mark.parametrize("name", CASES)
def test_xla_computes_what_torch_does(name):
    _, k, v = operands(name)
    static, case = k.static, CASES[name]
    codes = (x.codes.transpose(1, 0, 2)[None] for x in (k, v))
    own = (None if static else x.scale[..., 0].T[None] for x in (k, v))
    names = ("keys", "values", "key_scale", "value_scale")
    slots = Slots(**dict(zip(names, [*codes, *own], strict=True)))
    scales = {x: GOLDEN[f"{name}/{x}_scale"].reshape(-1)[:1] for x in "qkv"}
    config = AttentionConfig(
        kv_heads=2,
        head_dim=24,
        divisor=scores(name)[1],
        alibi=alibi_of(name),
        cap=case.get("cap"),
        window=case.get("window"),
        int8=True,
    )
    q, tokens = GOLDEN[f"{name}/q"], len(GOLDEN[f"{name}/q"])
    positions = jnp.arange(len(k) - tokens, len(k), dtype=jnp.int32)[None]
    mask, given = CausalMask(positions, case.get("window")), AttentionScales(**scales)
    found = attention_on_codes(jnp.asarray(q)[None], slots, mask, config, given if static else None)
    assert np.abs(np.asarray(found)[0] - GOLDEN[f"{name}/context"]).max() < CLOSE
