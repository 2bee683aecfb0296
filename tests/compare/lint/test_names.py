"""Names: biases of zeros, routers, tensors that are unknown, unused, missing or not finite."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.lint.names import check_names, check_routers
from planish.compare.lint.opened import Opened
from planish.compare.lint.run import lint
from planish.reference.files.safetensors import write_tensors
from planish.reference.gguf import GgufFile, GgufTensor
from tests.compare.lint.conftest import FOREIGN, UP, found
from tests.models import make_llama

GOLDEN = Path(__file__).parents[2] / "golden"
OF_NAMES = ("tensor-", "bias-", "router-", "model-", "linear-")


def named(path):
    """The rules of names that fired, with what they fired for."""
    return {one.rule: one.where for one in lint(path).findings if one.rule.startswith(OF_NAMES)}


def add(name, tensor):
    return lambda tensors, config: tensors.update({name: tensor})


@pytest.mark.parametrize("value", [0, 1])
def test_a_bias_of_a_linear_without_bias(edited, value):
    bias = np.full(128, value, np.float16)
    rule = "bias-unexpected" if value else "bias-zero"
    assert named(edited("gptq-v1-sym-g32", add(f"{UP}.bias", bias))) == {rule: f"{UP}.bias"}


def test_a_bias_of_zeros_that_the_architecture_has_is_sound(edited):
    def allow(tensors, config):
        config["mlp_bias"] = True
        for part, size in (("gate", 192), ("up", 192), ("down", 128)):
            tensors[f"model.layers.0.mlp.{part}_proj.bias"] = np.zeros(size, np.float16)

    assert named(edited("gptq-v1-sym-g32", allow)) == {}


def test_a_tensor_that_nobody_knows(edited):
    path = edited("gptq-v1-sym-g32", add("scale_bf16_to_fp8", np.ones(1, np.float16)))
    assert named(path) == {"tensor-unknown": "scale_bf16_to_fp8"}


def test_a_buffer_is_a_note(edited):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    path = edited("gptq-v1-sym-g32", add(name, np.ones(16, np.float32)))
    assert named(path) == {"tensor-unused": name}


def test_a_missing_norm(edited):
    path = edited("gptq-v1-sym-g32", lambda tensors, config: tensors.pop("model.norm.weight"))
    assert named(path) == {"tensor-missing": "model.norm.weight"}


def test_a_linear_without_codes_cannot_be_read(edited):
    path = edited("ct-w4a16-g32", lambda tensors, config: tensors.pop(f"{UP}.weight_packed"))
    assert named(path) == {"linear-unreadable": UP, "tensor-missing": f"{UP}.weight"}


def test_numbers_that_are_not_finite(edited):
    def spoil(tensors, config):
        tensors["model.norm.weight"][:2] = np.nan

    (one,) = found(edited("gptq-v1-sym-g32", spoil), "tensor-not-finite")
    assert (one.where, one.count, one.total) == ("model.norm.weight", 2, 128)


def test_nan_among_fp8_weights(edited):
    def spoil(tensors, config):
        tensors[f"{UP}.weight"].view(np.uint8)[0, :3] = [0x7F, 0xFF, 0x7E]  # 0x7E is 448

    (one,) = found(edited("ct-fp8", spoil), "code-not-a-number")
    assert (one.where, one.count) == (UP, 2)
    assert found(FOREIGN / "ct-fp8", "code-not-a-number") == []


def test_a_config_that_contradicts_the_tensors(edited):
    def halve(tensors, config):
        config["quantization_config"]["bits"] = 8

    findings = found(edited("gptq-v1-sym-g32", halve), "linear-unreadable")
    assert len(findings) == 7
    assert {one.detail for one in findings} == {
        "quantization_config.bits: bad value; expected 4, as it has, found 8"
    }


def test_inputs_that_planish_does_not_compute_are_no_error(edited):
    def static(tensors, config):
        group = config["quantization_config"]["config_groups"]["group_0"]
        group["input_activations"] |= {"symmetric": False, "strategy": "tensor"}

    path = edited("ct-w8a8", static)
    assert len(found(path, "linear-unsupported")) == 7
    assert found(path, "linear-unreadable") == []


def test_an_unknown_architecture_is_said_and_the_rest_is_checked(edited):
    def rename(tensors, config):
        config["model_type"] = "lama"
        tensors[f"{UP}.scales"][0, 0] = 0

    path = edited("gptq-v1-sym-g32", rename)
    assert named(path) == {"model-unknown": "config.json"}
    assert len(found(path, "scale-zero")) == 1


def test_a_quantized_router(tmp_path):
    """The router of a mixture in GPTQ's layout, as a tool that quantizes every Linear makes it."""
    source = GOLDEN / "mixtral-two-of-four"
    path = Path(shutil.copytree(source, tmp_path / "moe"))
    tensors = load_file(source / "model.safetensors")
    router = next(name for name in tensors if name.endswith("gate.weight"))
    prefix = router.removesuffix(".weight")
    cols = tensors.pop(router).shape[1]
    tensors |= {
        f"{prefix}.qweight": np.zeros((cols // 8, 8), np.int32),
        f"{prefix}.qzeros": np.full((1, 1), 0x77777777, np.int32),
        f"{prefix}.scales": np.ones((1, 8), np.float16),
    }
    save_file(tensors, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    config["quantization_config"] |= {"sym": True, "desc_act": False, "checkpoint_format": "gptq"}
    (path / "config.json").write_text(json.dumps(config))
    assert [one.where for one in found(path, "router-quantized")] == [prefix]
    assert found(source, "router-quantized") == []


def test_padding_tensors_break_other_readers(edited):
    path = edited("ct-w8a8", lambda tensors, config: None)
    assert found(path, "tensor-padding") == []
    tensors = load_file(path / "model.safetensors") | {"model.odd": np.ones(1, np.float32)}
    write_tensors(path / "model.safetensors", tensors)
    assert len(found(path, "tensor-padding")) == 1


def test_a_float_model_is_checked_too(tmp_path):
    model = make_llama(tmp_path)
    result = lint(model)
    assert (result.linears, result.findings) == (0, ())
    tensors = load_file(model / "model.safetensors")
    save_file(tensors | {"model.adapter": np.ones(3, np.float32)}, model / "model.safetensors")
    assert named(model) == {"tensor-unknown": "model.adapter"}


def test_a_shard_that_lacks_what_the_index_names(tmp_path):
    model, name = make_llama(tmp_path), "model.layers.0.mlp.up_proj.weight"
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors")}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    del tensors[name]
    save_file(tensors, model / "a.safetensors")
    assert named(model) == {"tensor-missing": name}


def test_routers_of_formats_that_vllm_does_not_read():
    prefixes = ["model.layers.0.mlp.gate", "blk.0.ffn_gate_inp", "model.layers.0.mlp.gate_proj"]
    for form, rule in (("mlx", "router-unread"), ("gptq", "router-quantized")):
        found = list(check_routers(Opened(path=Path(), format=form), prefixes))
        assert [(one.rule, one.where) for one in found] == [(rule, name) for name in prefixes[:2]]


@pytest.mark.parametrize(
    ("name", "architecture", "expected"),
    [
        ("blk.0.attn_q.weight", "llama", []),
        ("rope_freqs.weight", "llama", []),
        ("blk.0.ffn_gate_exps.weight", "llama", []),
        ("blk.0.ffn_gate_shexp.weight", "llama", ["tensor-unread"]),
        ("blk.0.ffn_gate_exps.weight", "mamba", ["model-unknown"]),
    ],
)
def test_names_of_gguf(name, architecture, expected):
    keys = {"general.architecture": architecture}
    tensor = GgufTensor(type="F32", shape=(1,), data=None)
    file = GgufFile(path=Path(), keys=keys, tensors={name: tensor})
    opened = Opened(path=Path(), format="gguf", gguf=file)
    assert [one.rule for one in check_names(opened)] == expected


def test_an_embedding_may_have_rows_without_a_token(edited):
    def spoil(tensors, config):
        tensors["model.embed_tokens.weight"][31] = np.inf

    path = edited("gptq-v1-sym-g32", spoil)
    assert len(found(path, "embedding-not-finite")) == 1
    assert found(path, "tensor-not-finite") == []
