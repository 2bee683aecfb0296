"""Mixtures of experts: expert ids, routing weights, and experts without tokens."""

from dataclasses import replace

import numpy as np
import pytest

from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.model.config import Moe
from planish.reference.model.transformer import forward, mixture, route
from planish.reference.model.weights import Experts, Mlp, block_linears, block_norms
from planish.reference.quantize.block import with_unseen_experts
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.observe import observe_block
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.smooth import smooth_block
from tests.reference.quantize.conftest import by_recipe

F32 = np.float32
SMALL = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MIXTRAL = {**SMALL, "model_type": "mixtral", "num_local_experts": 4, "sliding_window": None}
QWEN3_MOE = {
    **SMALL,
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "decoder_sparse_step": 2,
}


@pytest.fixture(scope="module", params=[MIXTRAL, QWEN3_MOE], ids=lambda v: v["model_type"])
def opened(request, tiny, tmp_path_factory):
    checkpoint = open_checkpoint(tiny.write(tmp_path_factory.mktemp("moe") / "m", request.param))
    return checkpoint, load_weights(checkpoint)


def moe_config(loaded, **changes):
    config = loaded["llama"][0].config
    return replace(config, moe=Moe(**{"num_experts": 4, "intermediate_size": 1, **changes}))


# Computed by transformers 5.23 (MixtralTopKRouter, Qwen3MoeTopKRouter) for these logits, except
# the order of equals, which torch.topk leaves open: here the lowest id comes first
LOGITS = np.log(np.array([[1, 4, 2, 1], [3, 1, 1, 5]], F32))


@pytest.mark.parametrize(
    ("normalized", "top_k", "weights", "ids"),
    [
        (True, 2, [[2 / 3, 1 / 3], [5 / 8, 3 / 8]], [[1, 2], [3, 0]]),
        (False, 2, [[0.5, 0.25], [0.5, 0.3]], [[1, 2], [3, 0]]),
        (True, 1, [[1.0], [1.0]], [[1], [3]]),
        (False, 1, [[0.5], [0.5]], [[1], [3]]),
        (True, 4, [[0.5, 0.25, 0.125, 0.125], [0.5, 0.3, 0.1, 0.1]], [[1, 2, 0, 3], [3, 0, 1, 2]]),
    ],
)
def test_routing_weights_are_softmaxes_over_all_experts(loaded, normalized, top_k, weights, ids):
    config = moe_config(loaded, top_k=top_k, normalized=normalized)
    routing_weights, expert_ids = route(config, LOGITS)
    assert routing_weights == pytest.approx(np.array(weights), rel=1e-6)
    assert expert_ids.tolist() == ids


def test_the_output_of_an_expert_has_its_routing_weight(loaded):
    """Expert e multiplies by e + 1: y = x * sum over e of weight_e * (e + 1)."""
    config = replace(moe_config(loaded, top_k=2, normalized=True), activation="relu")
    one = np.ones((1, 1), F32)
    experts = [Mlp(None, Linear(one), Linear(one * (e + 1))) for e in range(4)]
    router = Linear(np.array([[0.0], [2.0], [1.0], [-1.0]], F32) * F32(np.log(2)))
    found = mixture(config, Experts(router, experts), np.array([[1.0], [2.0]], F32))
    # exp of the logits of the first token: 1, 4, 2, 1/2; of the second: 1, 16, 4, 1/4
    assert found == pytest.approx(np.array([[(4 * 2 + 2 * 3) / 6], [2 * (16 * 2 + 4 * 3) / 20]]))


def test_only_the_chosen_experts_are_computed(loaded):
    config = moe_config(loaded, top_k=1, normalized=True)
    router = Linear(np.array([[1.0], [0.0], [0.0], [-1.0]], F32))
    one = Linear(np.ones((1, 1), F32))
    experts = [Mlp(None, one, one), None, None, Mlp(None, one, one)]  # an absent one would raise
    tapped = []
    x = np.array([[1.0], [-1.0], [2.0]], F32)
    mixture(config, Experts(router, experts), x, lambda name, x: tapped.append((name, len(x))))
    ran = [("experts.0.up", 2), ("experts.0.down", 2), ("experts.3.up", 1), ("experts.3.down", 1)]
    assert tapped == [("router", 3), *ran]


@pytest.mark.matrix(4)
@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_smoothing_folds_the_router_and_every_expert_jointly(opened, samples, alpha):
    checkpoint, weights = opened
    config, hidden = checkpoint.config, [weights.embed[tokens] for tokens in samples]
    for block in weights.blocks:
        absmax, outputs = observe_block(config, block, hidden)
        smooth = smooth_block(config, block, absmax, alpha)
        _, found = observe_block(config, smooth, hidden)
        for y, expected in zip(found, outputs, strict=True):
            assert np.abs(y - expected).max() < 2e-5 * np.ptp(expected)
        _check_joint(block, smooth)
        hidden = outputs


def _check_joint(block, smooth):
    """Every linear that reads the MLP's norm was multiplied by the norm's divisor."""
    s = block_norms(block)["mlp_norm"].weight / block_norms(smooth)["mlp_norm"].weight
    assert np.ptp(s) > 0.1
    readers = [name for name in block_linears(block) if name.split(".")[-1] in READERS]
    assert len(readers) == (9 if block.kind.experts else 2)
    for name in readers:
        before, after = block_linears(block)[name].weight, block_linears(smooth)[name].weight
        assert after == pytest.approx(before * s, rel=1e-5)


READERS = ("router", "gate", "up")


def test_an_expert_that_no_token_chose_expects_what_the_others_saw(opened, samples):
    """Its input is the router's; its inner values are the largest of the others'."""
    checkpoint, weights = opened
    config, block = checkpoint.config, weights.blocks[1]
    hidden = [weights.embed[samples[0][:1]]]  # one token, two experts of four
    absmax, _ = observe_block(config, block, hidden)
    chosen = sorted({name.split(".")[1] for name in absmax if name.startswith("experts.")})
    assert len(chosen) == 2
    unseen = next(str(e) for e in range(4) if str(e) not in chosen)
    filled = with_unseen_experts(block, absmax)
    for part in ("gate", "up"):
        assert np.array_equal(filled[f"experts.{unseen}.{part}"], absmax["router"])
    largest = np.maximum(*(absmax[f"experts.{e}.down"] for e in chosen))
    assert np.array_equal(filled[f"experts.{unseen}.down"], largest)
    chosen = recipe("O3")
    static = by_recipe(config, block, chosen, hidden)
    scale = static.mlp.experts[int(unseen)].down.activation_scale
    assert scale == pytest.approx([largest.max() / 127])


def test_the_router_stays_in_float(opened, samples, tmp_path):
    checkpoint, weights = opened
    with CheckpointWriter(tmp_path / "q", checkpoint.path) as writer:
        quantize_checkpoint(checkpoint, writer, recipe("naive"), samples)
    quantized = load_weights(open_checkpoint(tmp_path / "q"))
    router = quantized.blocks[1].mlp.router
    assert np.array_equal(router.weight, weights.blocks[1].mlp.router.weight)
    assert router.activation == "float"
    tokens = samples[0]
    found = forward(checkpoint.config, quantized, tokens)
    expected = forward(checkpoint.config, weights, tokens)
    assert 0 < np.abs(found - expected).max() < 0.5 * np.ptp(expected)


def test_both_spellings_of_mixtral_s_experts_are_read(tiny, tmp_path):
    tensors = tiny.tensors(MIXTRAL)
    other = {n.replace("block_sparse_moe", "mlp"): tensor for n, tensor in tensors.items()}
    assert other.keys() != tensors.keys()
    paths = [tiny.write(tmp_path / n, MIXTRAL, t) for n, t in (("a", tensors), ("b", other))]
    first, second = (forward(*_model(path), [3, 1, 4]) for path in paths)
    assert np.array_equal(first, second)


def _model(path):
    checkpoint = open_checkpoint(path)
    return checkpoint.config, load_weights(checkpoint)
