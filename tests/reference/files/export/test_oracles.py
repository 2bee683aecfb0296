"""Directories of pocket's model in the programs of their formats' owners; needs their packages.

The extra `oracle` has all but one: BUILD_CUDA_EXT=0 pip install --no-build-isolation gptqmodel
compiles against the torch that is installed. 7.7.0 needs torch 2.14.1 or later, 7.6.0 takes 2.13.

transformers quantizes inputs with absmax / 127.5 and planish with absmax / 127, so logits of W8A8
and W4A8 are compared after `dequantize=True`, which leaves the inputs in floats.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from planish.reference.files.load import load_weights
from planish.reference.model.weights import block_linears
from planish.reference.quantized import dequantize
from tests.reference.files.export.conftest import logits

POCKET = Path(__file__).parents[4] / "pocket" / "model"
TOKENS = [1, 50, 90, 200, 71, 310, 33, 12, 400, 5]
RECIPES = {
    "W8A8": ({}, 1e-3),
    "W8A16": ({}, 1e-5),
    "W4A16": ({"group_size": 32}, 1e-5),
    "W4A16-asymmetric": ({"group_size": 32, "rule": "minmax"}, 1e-3),  # rounded to float16
    "W4A8": ({"group_size": 32, "activation": "per_token"}, 1e-3),
}


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "compressed_tensors")),
    reason="needs torch, transformers and compressed-tensors",
)
@pytest.mark.filterwarnings("ignore")  # of torch and transformers
@pytest.mark.parametrize("name", RECIPES)
def test_transformers_computes_the_same_from_compressed_tensors(name, quantized, converted):
    import torch
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    changes, tolerance = RECIPES[name]
    theirs = converted(quantized(POCKET, name.partition("-")[0], **changes), "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(
        theirs.path,
        dtype=torch.float32,
        quantization_config=CompressedTensorsConfig(dequantize=True),
    )
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0].float().numpy()
    expected = logits(converted(theirs, "float"), TOKENS)
    assert np.abs(found - expected).max() < tolerance * np.ptp(expected)


def assert_same_weights(found: dict[str, np.ndarray], checkpoint) -> None:
    """Every quantized linear, dequantized, to the bit."""
    floats = load_weights(checkpoint)
    expected = {
        checkpoint.prefix(part, layer): dequantize(linear.weight)
        for layer, block in enumerate(floats.blocks)
        for part, linear in block_linears(block).items()
    }
    assert found.keys() == expected.keys()
    for name, weights in expected.items():
        np.testing.assert_array_equal(found[name], weights, err_msg=name)


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "gptqmodel")), reason="needs gptqmodel"
)
@pytest.mark.filterwarnings("ignore")  # of torch and gptqmodel
@pytest.mark.parametrize(
    ("form", "rule"), [("gptq", "absmax"), ("gptq_v2", "minmax"), ("awq", "minmax")]
)
def test_gptqmodel_has_the_same_weights(form, rule, quantized, converted):
    import torch
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear import BaseQuantLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    ours = quantized(POCKET, "W4A16", group_size=64, rule=rule)
    theirs = converted(ours, form)
    backend = BACKEND.AWQ_TORCH if form == "awq" else BACKEND.GPTQ_TORCH
    loaded = GPTQModel.load(theirs.path, device="cpu", dtype=torch.float16, backend=backend)
    found = {}
    for name, module in loaded.model.named_modules():
        if isinstance(module, BaseQuantLinear):
            module.scales = module.scales.float()
            if form == "awq":
                packed = module.qweight, module.qzeros, module.scales
                w = dequantize_gemm(*packed, module.bits, module.group_size)
            else:
                w = module.dequantize_weight()
            found[name] = w.T.float().numpy()
    assert_same_weights(found, ours)


@pytest.mark.skipif(find_spec("mlx_lm") is None, reason="needs mlx-lm")
@pytest.mark.filterwarnings("ignore")  # of mlx-lm and transformers
@pytest.mark.parametrize("rule", ["signed", "minmax"])
def test_mlx_computes_the_same(rule, quantized, converted):
    import mlx.core as mx
    from mlx import nn
    from mlx_lm.utils import load_model

    mx.set_default_device(mx.cpu)
    ours = quantized(POCKET, "W4A16", group_size=64, rule=rule)
    model, _ = load_model(converted(ours, "mlx", dtype="float32").path)
    found = {
        name: np.array(mx.dequantize(m.weight, m.scales, m.biases, m.group_size, m.bits))
        for name, m in model.named_modules()
        if isinstance(m, nn.QuantizedLinear)
    }
    assert_same_weights(found, ours)
    expected = logits(ours, TOKENS)
    assert np.abs(np.array(model(mx.array([TOKENS]))[0]) - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("torch", "transformers", "auto_round")),
    reason="needs torch, transformers and auto-round",
)
@pytest.mark.filterwarnings("ignore")  # of torch, transformers and auto-round
@pytest.mark.parametrize(("form", "rule"), [("gptq", "absmax"), ("awq", "minmax")])
def test_auto_round_computes_the_same_in_float16(form, rule, quantized, converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoRoundConfig

    ours = quantized(POCKET, "W4A16", group_size=64, rule=rule)
    theirs = converted(ours, form).path
    forget_who_made(theirs / "config.json")
    config = AutoRoundConfig(backend="torch")
    model = AutoModelForCausalLM.from_pretrained(theirs, quantization_config=config)
    attention = model.model.layers[0].self_attn
    assert not isinstance(attention.q_proj, torch.nn.Linear)
    with torch.no_grad():
        found = model(torch.tensor([TOKENS])).logits[0].float().numpy()
    expected = logits(ours, TOKENS)
    assert np.abs(found - expected).max() < 3e-3 * np.ptp(expected)


def forget_who_made(config: Path) -> None:
    """transformers refuses to give AutoRound a GPTQ config with `meta`, which names its program."""
    values = json.loads(config.read_text())
    del values["quantization_config"]["meta"]
    config.write_text(json.dumps(values))
