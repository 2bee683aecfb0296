"""Checkpoints that other programs wrote (tests/golden/foreign.py): their weights, to the bit."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.errors import CheckpointError, ConfigError, PlanishError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.safetensors import read_entries, write_tensors
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import linear
from planish.reference.model.transformer import forward
from planish.reference.quantized import dequantize
from tests.golden.foreign import TARGET, digest

SAMPLES = sorted(path for path in TARGET.iterdir() if (path / "config.json").exists())
TOKENS = [1, 5, 9, 20, 7, 31, 3]
HEADS = {"mlx-4bit-g64": "int4 g=64 offset", "mlx-8bit-g64": "int8 g=64 offset"}  # tied
SCHEMES = {
    "autoround-as-llm_compressor": "int4 g=32",
    "autoround-as-mlx": "int4 g=32",
    "autoround-asym-g32": "int4 g=32 asymmetric",
    "autoround-asym-plain": "int4 g=32 asymmetric",
    "autoround-sym-g32": "int4 g=32",
    "awq-gemm-g32": "int4 g=32 asymmetric",
    "ct-fp8": "float",
    "ct-fp8-block64": "float",
    "ct-w4a16-asym-g32": "int4 g=32 asymmetric",
    "ct-w4a16-channel": "int4 per_channel",
    "ct-w4a16-g32": "int4 g=32",
    "ct-w4a8-g32": "int4 g=32, input int8 per_token",
    "ct-w8a16-g64": "int8 g=64",
    "ct-w8a8": "int8 per_channel full range, input int8 per_token",
    "ct-w8a8-static-asym": "int8 per_channel full range, input int8 static asymmetric",
    "gptq-v1-8bit-sym-g32": "int8 g=32",
    "gptq-v1-asym-g32": "int4 g=32 asymmetric",
    "gptq-v1-sym-channel": "int4 per_channel",
    "gptq-v1-sym-g32": "int4 g=32",
    "gptq-v1-sym-g32-desc_act": "int4 g=32 act order",
    "gptq-v2-asym-g32": "int4 g=32 asymmetric",
    "mlx-4bit-g64": "int4 g=64 offset",
    "mlx-8bit-g64": "int8 g=64 offset",
    "torchao-int8-w8a8": "int8 per_channel full range, input int8 per_token",
}


def named(name):
    return TARGET / name


def weights_of(checkpoint, prefix):
    """The weights of a linear or an embedding as the reference sees them, float32."""
    form = checkpoint.format
    scheme = None if form is None else form.scheme(checkpoint, prefix, "")
    entry = checkpoint.entries[f"{prefix}.weight"]
    if scheme is None:
        return entry.map().astype(np.float32)
    cols = {"down_proj": checkpoint.config.intermediate_size}
    shape = entry.shape[0], cols.get(prefix.rpartition(".")[2], checkpoint.config.hidden_size)
    return dequantize(form.read(checkpoint, prefix, scheme, shape).weight)


def copy(name, tmp_path):
    return Path(shutil.copytree(named(name), tmp_path / name))


def change_config(path, **changes):
    file = path / "config.json"
    values = json.loads(file.read_text())
    values["quantization_config"] |= changes
    file.write_text(json.dumps(values))


def change_tensor(path, name, change):
    """Apply a function to a tensor's bytes, in place."""
    file = path / "model.safetensors"
    raw = bytearray(file.read_bytes())
    size = int.from_bytes(raw[:8], "little")
    info = json.loads(raw[8 : 8 + size])[name]
    start, end = (8 + size + place for place in info["data_offsets"])
    part = change(np.frombuffer(bytes(raw[start:end]), np.uint8).copy())
    raw[start:end] = part.tobytes()
    file.write_bytes(raw)


def test_every_sample_is_in_the_table():
    assert {path.name for path in SAMPLES} == SCHEMES.keys()


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_weights_are_those_of_the_program_to_the_bit(path):
    checkpoint = open_checkpoint(path)
    expected = json.loads((path / "dequantized.json").read_text())
    assert expected
    for prefix, wanted in expected.items():
        assert digest(weights_of(checkpoint, prefix)) == wanted, prefix


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_linears_have_the_scheme_that_the_program_gave_them(path):
    schemes = open_checkpoint(path).schemes()
    head = schemes.pop("lm_head")
    assert str(head or "float") == HEADS.get(path.name, "float")
    assert {str(scheme or "float") for scheme in schemes.values()} == {SCHEMES[path.name]}


@pytest.mark.parametrize("name", HEADS)
def test_mlx_embeddings_keep_their_codes_and_a_tied_head_has_them_too(name):
    checkpoint = open_checkpoint(named(name))
    weights = load_weights(checkpoint)
    assert checkpoint.entries["model.embed_tokens.weight"].dtype == "F32"
    assert checkpoint.origin.made_by == "mlx"
    assert weights.head.scheme is not None
    assert np.array_equal(dequantize(weights.head.weight), dequantize(weights.embed))


@pytest.mark.matrix(24)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_both_engines_compute_the_same(path):
    checkpoint = open_checkpoint(path)
    expected = forward(checkpoint.config, load_weights(checkpoint), TOKENS)
    found = Engine(checkpoint).forward(TOKENS)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize(
    "name", ["mlx-4bit-g64", "mlx-8bit-g64", "ct-w8a16-g64", "gptq-v1-sym-g32-desc_act", "ct-w8a8"]
)
def test_every_linear_is_tiled_for_the_kernels(name):
    checkpoint = open_checkpoint(named(name))
    tiled = load_weights(checkpoint, tiled=True).blocks[0].mlp.down.weight
    stored = load_weights(checkpoint).blocks[0].mlp.down.weight
    assert (tiled.layout, stored.layout) == ("tiles", "canonical")
    np.testing.assert_array_equal(dequantize(tiled), dequantize(stored))


def test_a_float8_model_can_be_quantized():
    checkpoint = open_checkpoint(named("ct-fp8"))
    assert checkpoint.quantization is None and checkpoint.format is None
    assert checkpoint.origin.format == "compressed-tensors"


def test_minus_128_is_kept():
    checkpoint = open_checkpoint(named("ct-w8a8"))
    codes = load_weights(checkpoint).blocks[0].mlp.up.weight.codes
    assert codes.min() == -128


def test_act_order_sorts_the_inputs():
    weight = load_weights(open_checkpoint(named("gptq-v1-sym-g32-desc_act"))).blocks[0].q.weight
    assert sorted(weight.permutation) == list(range(128))
    assert list(weight.permutation) != list(range(128))


@pytest.mark.parametrize(
    ("quantizer", "wanted"),
    [("gptqmodel:7.7.0", [1, 0]), ("intel-extension", [1, 0])],
    ids=["word", "field"],
)
def test_a_zero_point_of_zero_is_stored_as_15(tmp_path, quantizer, wanted):
    """GPTQModel borrows from the next field, Neural Compressor does not."""
    path = copy("gptq-v1-asym-g32", tmp_path)
    change_config(path, meta={"quantizer": [quantizer]})
    stored = 0x6666_66_F0 - (0x100 if quantizer.startswith("gptqmodel") else 0)

    def put(raw):
        raw[:4] = np.frombuffer(np.uint32(stored).tobytes(), np.uint8)
        return raw

    name = "model.layers.0.self_attn.q_proj"
    change_tensor(path, f"{name}.qzeros", put)
    zeros = open_checkpoint(path).entries[f"{name}.weight_zero_point"].map()
    assert list(zeros[:2, 0]) == wanted
    assert list(zeros[2:8, 0]) == [7] * 6


def test_a_wrong_label_of_symmetric_zero_points_is_seen_in_the_fields(tmp_path, caplog):
    path = copy("gptq-v1-sym-g32", tmp_path)
    before = weights_of(open_checkpoint(path), "model.layers.0.mlp.up_proj")
    change_config(path, checkpoint_format="gptq_v2", format="gptq_v2")
    after = weights_of(open_checkpoint(path), "model.layers.0.mlp.up_proj")
    assert np.array_equal(before, after)
    assert "zero points of version 1, whatever is declared" in caplog.text


LIES = [
    ("gptq-v1-sym-g32", {"bits": 8}, "bits: bad value; expected 4, as .* has, found 8"),
    ("gptq-v1-sym-g32", {"group_size": 64}, "group_size: bad value; expected 32, as"),
    ("awq-gemm-g32", {"group_size": 128}, "group_size: bad value; expected 32, as"),
    ("awq-gemm-g32", {"version": "gemv_fast"}, "version: bad value; expected one of gemm, gemv"),
    ("mlx-4bit-g64", {"bits": 8}, "wrong shape"),
    ("mlx-4bit-g64", {"group_size": 48}, "group_size: bad value; expected one of 32, 64, 128"),
    ("mlx-4bit-g64", {"mode": "mxfp4"}, "mode: bad value; expected affine"),
    ("autoround-sym-g32", {"packing_format": "auto_round:exl"}, "packing_format: bad value"),
    ("ct-w8a8", {"transform_config": {"a": 1}}, "transform_config: bad value; expected none"),
    ("ct-w8a8", {"sparsity_config": {"format": "sparse-24-bitmask"}}, "expected dense weights"),
    ("ct-w8a8", {"config_groups": {}}, "a group for every quantized linear"),
    ("ct-w4a16-g32", {"config_groups": []}, "config_groups: bad value; expected an object"),
    ("gptq-v1-sym-g32", {"quant_method": "hqq"}, "hqq cannot be read: .*; expected take the"),
    ("gptq-v1-sym-g32", {"quant_method": "quanto"}, "quanto cannot be read"),
    ("gptq-v1-sym-g32", {"quant_method": "mxfp4"}, "mxfp4 cannot be read"),
    ("gptq-v1-sym-g32", {"quant_method": "bitsandbytes"}, "NF4 and FP4 are tables"),
    ("gptq-v1-sym-g32", {"quant_method": "new"}, "expected one of planish, compressed-tensors,"),
]


@pytest.mark.parametrize(("name", "changes", "message"), LIES)
def test_a_config_that_lies_or_is_of_another_format_is_refused(tmp_path, name, changes, message):
    path = copy(name, tmp_path)
    change_config(path, **changes)
    with pytest.raises((ConfigError, CheckpointError), match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"strategy": "token", "dynamic": True}, "found 8 bits, int, asymmetric, strategy token"),
        ({"strategy": "tensor", "dynamic": True}, "found 8 bits, int, asymmetric, strategy tensor"),
        ({"symmetric": True}, "input_zero_point: cannot be read; expected zeros: symmetric INT8"),
    ],
)
def test_dynamic_inputs_with_a_zero_point_are_refused(tmp_path, inputs, message):
    path = copy("ct-w8a8-static-asym", tmp_path)
    values = json.loads((path / "config.json").read_text())
    group = values["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"] |= inputs
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        open_checkpoint(path)


def test_tensors_say_what_is_an_integer_whatever_the_group_is(tmp_path):
    path = copy("ct-fp8", tmp_path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"F8_E4M3"', b'"I8"     '))
    schemes = open_checkpoint(path).declared.targets.values()
    assert {str(scheme) for scheme in schemes} == {"int8 per_channel full range"}


def test_a_missing_zero_point_of_static_inputs_is_refused(tmp_path):
    path = copy("ct-w8a8", tmp_path)
    values = json.loads((path / "config.json").read_text())
    group = values["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"] |= {"strategy": "tensor", "dynamic": False, "symmetric": False}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"input_scale: is missing"):
        open_checkpoint(path)


def test_static_inputs_have_a_zero_point():
    """By hand: the integers of one linear, from the file's own tensors."""
    entries = open_raw(named("ct-w8a8-static-asym"))
    name = "model.layers.0.self_attn.q_proj"
    codes, scale, step, zero = (
        entries[f"{name}.{kind}"].map().astype(np.float64)
        for kind in ("weight", "weight_scale", "input_scale", "input_zero_point")
    )
    assert zero == 3
    x = np.linspace(-6, 5, 2 * 128, dtype=np.float32).reshape(2, 128)
    xq = np.clip(np.rint(x / np.float32(step)) + zero, -128, 127)
    assert (xq == -128).any() and (xq == 127).any()
    total = (xq - zero) @ codes.T
    wanted = total.astype(np.float32) * np.float32(step) * scale.T.astype(np.float32)
    block = load_weights(open_checkpoint(named("ct-w8a8-static-asym"))).blocks[0]
    assert np.array_equal(linear(x, block.q), wanted)


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("re:.*q_proj$", True),
        ("re:model[.]layers[.]0[.].*", True),
        ("model.layers.0.self_attn.q_proj", True),
        ("re:(a+)+$", None),
        ("re:.*.*.*.*.*", None),
        ("re:" + "a" * 300, None),
        ("re:[", None),
    ],
)
def test_targets_are_names_or_expressions_that_end_soon(tmp_path, target, found):
    path = copy("ct-w4a16-g32", tmp_path)
    values = json.loads((path / "config.json").read_text())
    groups = values["quantization_config"]["config_groups"]
    groups["group_1"] = {**groups["group_0"], "targets": [target]}
    (path / "config.json").write_text(json.dumps(values))
    if found:
        assert open_checkpoint(path).declared.targets
        return
    with pytest.raises(ConfigError, match="expressions? "):
        open_checkpoint(path)


NAN = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)


@pytest.mark.parametrize(
    ("name", "tensor", "value"),
    [
        ("gptq-v1-sym-g32", "scales", NAN),
        ("gptq-v1-sym-g32", "scales", [0, 0]),
        ("awq-gemm-g32", "scales", NAN),
        ("ct-w4a16-g32", "weight_scale", [0xC0, 0x7F]),
        ("mlx-4bit-g64", "biases", [0x80, 0x7F]),
        ("ct-w8a8", "weight_scale", [0x80, 0xFF]),
    ],
)
def test_scales_that_are_no_numbers_are_refused(tmp_path, name, tensor, value):
    path = copy(name, tmp_path)
    prefix = "model.layers.0.mlp.up_proj"

    def put(raw):
        raw[:2] = value
        return raw

    change_tensor(path, f"{prefix}.{tensor}", put)
    with pytest.raises(CheckpointError, match=f"{prefix}.* bad value; expected finite"):
        load_weights(open_checkpoint(path)).blocks[0]


def test_group_ids_that_are_no_groups_are_refused(tmp_path):
    path = copy("gptq-v1-sym-g32-desc_act", tmp_path)
    change_tensor(path, "model.layers.0.mlp.up_proj.g_idx", np.zeros_like)
    with pytest.raises(CheckpointError, match="g_idx: bad value; expected 4 groups of 32 inputs"):
        open_checkpoint(path)


def mutate(path, rng):
    """Change bytes of the header, a number of the config, or the file's length."""
    file = path / ("config.json" if rng.random() < 0.3 else "model.safetensors")
    raw = bytearray(file.read_bytes())
    if rng.random() < 0.1:
        raw = raw[: rng.integers(len(raw))]
    for _ in range(rng.integers(1, 6)):
        end = min(len(raw), 6000)
        if end:
            digit = rng.random() < 0.5
            place = int(rng.integers(end))
            raw[place] = rng.integers(48, 58) if digit else raw[place] ^ 1 << int(rng.integers(8))
    file.write_bytes(raw)


@pytest.mark.matrix(24)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_mutated_headers_give_a_model_or_a_typed_error(path, tmp_path):
    """44 of each sample: a thousand in all."""
    refused = 0
    for seed in range(44):
        rng = np.random.default_rng([seed, len(path.name)])
        target = Path(shutil.copytree(path, tmp_path / str(seed)))
        mutate(target, rng)
        try:
            checkpoint = open_checkpoint(target)
            with np.errstate(all="ignore"):
                load_weights(checkpoint).blocks[0]
        except PlanishError as problem:
            assert str(problem).isprintable(), seed  # noqa: PT017  (it may also load)
            refused += 1
        shutil.rmtree(target)
    assert refused > 4


@pytest.mark.parametrize(
    "name",
    [
        *("mlx-4bit-g64", "mlx-8bit-g64", "ct-w8a8", "ct-w8a16-g64", "gptq-v1-sym-g32-desc_act"),
        "ct-w8a8-static-asym",
    ],
)
def test_planish_stores_what_others_made(name, tmp_path):
    """Offsets, INT8 in groups, -128 and act order survive a directory of planish's own."""
    checkpoint = open_checkpoint(named(name))
    target, form = tmp_path / "written", checkpoint.format
    schemes = {prefix: s for prefix, s in checkpoint.schemes().items() if s is not None}
    with CheckpointWriter(target, named(name)) as writer:
        for tensor, entry in checkpoint.entries.items():
            if tensor.rpartition(".")[0] not in schemes:
                writer.add(tensor, entry.map())
        for prefix, scheme in schemes.items():
            rows = checkpoint.entries[f"{prefix}.weight"].shape[0]
            shape = rows, 192 if "down_proj" in prefix else 128
            form.write(writer, prefix, form.read(checkpoint, prefix, scheme, shape))
        said = {"quantization_config": form.config(schemes, "canonical")}
        writer.finish(checkpoint.values | said)
    again = open_checkpoint(target)
    assert again.schemes() == checkpoint.schemes() and again.origin is None
    for prefix in schemes:
        assert np.array_equal(weights_of(again, prefix), weights_of(checkpoint, prefix))


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@pytest.mark.parametrize("name", ["ct-w4a16-g32", "ct-w8a8"])
def test_fused_tensors_are_split_by_rows(tmp_path, name):
    """Phi3 fuses q, k and v, and gate and up: here those of a Llama, whose graph is the same."""
    path = copy(name, tmp_path)
    entries, tensors = open_raw(path), {}
    for tensor in entries:
        prefix, _, kind = tensor.rpartition(".")
        stem, _, last = prefix.rpartition(".")
        fused = next((whole for whole, parts in FUSED.items() if last in parts), None)
        if fused is None:
            tensors[tensor] = entries[tensor].map()
        elif last == FUSED[fused][0] and kind != "weight_shape":
            each = [entries[f"{stem}.{part}.{kind}"].map() for part in FUSED[fused]]
            tensors[f"{stem}.{fused}.{kind}"] = np.concatenate(each)
    write_tensors(path / "fused", tensors)  # the other is mapped
    (path / "fused").replace(path / "model.safetensors")
    values = json.loads((path / "config.json").read_text()) | {"model_type": "phi3"}
    (path / "config.json").write_text(json.dumps(values))
    plain, fused = open_checkpoint(named(name)), open_checkpoint(path)
    parts = {prefix.rpartition(".")[2] for prefix in fused.declared.targets}
    assert parts == {"q", "k", "v", "gate", "up", "down_proj", "o_proj"}
    expected, found = (forward(c.config, load_weights(c), TOKENS) for c in (plain, fused))
    assert np.array_equal(found, expected)


def open_raw(path):
    """The tensors as the other program wrote them."""
    return read_entries(path / "model.safetensors")
