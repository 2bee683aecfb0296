"""Tensors of an opened model: all there, no other, right in type, shape and value."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import CheckpointError, ConfigError, PlanishError
from planish.reference.files.load import load_block, load_float, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight
from tests.old.version_1 import as_version_1

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"


def load_all(path):
    weights = load_weights(open_checkpoint(path))
    return replace(weights, blocks=list(weights.blocks))


def drop(name):
    return lambda t: t.pop(name)


def put(name, make):
    return lambda t: t.update({name: make(t.get(name))})


def poke(name, value):
    def change(tensors):
        tensors[name].reshape(-1)[1] = value

    return change


TENSORS = [
    (drop(f"{Q}.weight"), f"{Q}.weight: is missing"),
    (drop("model.norm.weight"), "model.norm.weight: is missing"),
    (drop("lm_head.weight"), "lm_head.weight: is missing"),
    (drop("model.embed_tokens.weight"), "embed_tokens.weight: is missing"),
    (drop("model.layers.1.input_layernorm.weight"), "input_layernorm.weight: is missing"),
    (
        put("model.layers.2.mlp.up_proj.weight", lambda _: np.ones((40, 32), "f4")),
        "is not a tensor",
    ),
    (put("surprise", lambda _: np.ones(3, "f4")), "surprise: is not a tensor of this model"),
    (put(f"{Q}.bias", lambda _: np.ones(32, "f4")), f"{Q}.bias: is not a tensor of this model"),
    (put("model.norm.bias", lambda _: np.ones(32, "f4")), "model.norm.bias: is not a tensor"),
    (put(f"{Q}.weight_scale", lambda _: np.ones((32, 1), "f4")), "weight_scale: is not a tensor"),
    (
        put(f"{DOWN}.weight", lambda w: w.T.copy()),
        r"wrong shape; expected \[32, 40\], found \[40, 32",
    ),
    (put(f"{Q}.weight", lambda w: w[:, :31].copy()), "wrong shape"),
    (put(f"{Q}.weight", lambda w: w[None].copy()), "wrong shape"),
    (
        put("model.norm.weight", lambda w: w[:1].copy()),
        r"wrong shape; expected \[32\], found \[1\]",
    ),
    (put("model.embed_tokens.weight", lambda w: w[:47].copy()), r"expected \[48, 32\], found \[47"),
    (put("lm_head.weight", lambda w: w[:0].copy()), "wrong shape"),
    (put(f"{Q}.weight", lambda w: w.astype(np.int64)), "wrong type; expected F32 or .*found I64"),
    (put(f"{Q}.weight", lambda w: w.astype(bool)), "wrong type.*found BOOL"),
    (put(f"{Q}.weight", lambda w: w.astype(np.int8)), "wrong type.*found I8"),
    (put(f"{Q}.weight", lambda w: w.astype(np.float64)), "wrong type.*found F64"),
    (
        poke(f"{Q}.weight", np.nan),
        rf"{Q}.weight: bad value; expected finite, found nan at \(0, 1\)",
    ),
    (poke(f"{DOWN}.weight", np.inf), r"found inf at \(0, 1\)"),
    (poke("model.norm.weight", -np.inf), r"found -inf at \(1,\)"),
    (poke("model.embed_tokens.weight", np.nan), "found nan"),
    (poke("lm_head.weight", np.nan), "found nan"),
]


@pytest.mark.parametrize(("damage", "message"), TENSORS, ids=[m for _, m in TENSORS])
def test_a_wrong_tensor_is_refused_by_name(tiny, tmp_path, damage, message):
    tensors = tiny.tensors(tiny.values())
    damage(tensors)
    path = tiny.write(tmp_path / "model", None, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_all(path)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_half_precision_nan_and_inf_are_found_too(tiny, tmp_path, dtype, value):
    tensors = {n: t.astype(dtype) for n, t in tiny.tensors(tiny.values()).items()}
    tensors[f"{Q}.weight"][2, 3] = value
    with pytest.raises(CheckpointError, match=r"at \(2, 3\)"):
        load_all(tiny.write(tmp_path / "model", None, tensors))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_comes_out_as_float32(tiny, tmp_path, dtype):
    tensors = {n: t.astype(dtype) for n, t in tiny.tensors(tiny.values()).items()}
    weights = load_all(tiny.write(tmp_path / "model", None, tensors))
    assert weights.blocks[0].q.weight.dtype == np.float32
    assert np.array_equal(weights.blocks[0].q.weight, tensors[f"{Q}.weight"].astype(np.float32))


def test_a_zero_channel_works(tiny, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors[f"{Q}.weight"][:] = 0
    tensors[f"{DOWN}.weight"][:, 4] = 0
    path = tiny.write(tmp_path / "model", None, tensors)
    assert np.isfinite(forward(open_checkpoint(path).config, load_all(path), [1, 2, 3])).all()


def test_a_tied_model_may_bring_its_head_along(tiny, tmp_path):
    values = tiny.values(tie_word_embeddings=True)
    tensors = tiny.tensors(values)
    alone = load_all(tiny.write(tmp_path / "a", values, tensors))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    both = load_all(tiny.write(tmp_path / "b", values, tensors))
    assert np.array_equal(alone.head.weight, both.head.weight)


def test_rotary_frequencies_of_old_checkpoints_are_ignored(tiny, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    load_all(tiny.write(tmp_path / "model", None, tensors))


def test_opt_is_read_without_its_outer_prefix(tiny, tmp_path):
    values = tiny.values("opt")
    tensors = {n.removeprefix("model."): t for n, t in tiny.tensors(values).items()}
    short = load_all(tiny.write(tmp_path / "short", values, tensors))
    full = load_all(tiny.write(tmp_path / "full", values))
    assert np.array_equal(short.blocks[1].mlp.down.weight, full.blocks[1].mlp.down.weight)


def test_blocks_are_read_when_they_are_asked_for(tiny, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors[f"{DOWN}.weight"][0, 0] = np.nan  # in block 1
    checkpoint = open_checkpoint(tiny.write(tmp_path / "model", None, tensors))
    blocks = load_weights(checkpoint).blocks
    assert len(blocks) == 2 and len(blocks[:1]) == 1
    assert np.array_equal(blocks[0].q.weight, load_block(checkpoint, 0).q.weight)
    for ask in (lambda: blocks[1], lambda: blocks[-1], lambda: list(blocks)):
        with pytest.raises(CheckpointError, match="found nan"):
            ask()
    with pytest.raises(IndexError):
        blocks[2]


def test_float32_tensors_are_views_of_the_file(tiny, tmp_path):
    checkpoint = open_checkpoint(tiny.write(tmp_path / "model"))
    assert isinstance(load_float(checkpoint, "lm_head.weight", (48, 32)), np.memmap)


@pytest.fixture
def quantized(directories, tmp_path, samples):
    """Make a quantized model by a recipe; W4A16's zero points are stored unless a rule is given."""

    def make(name, **changes):
        if name == "W4A16":
            changes = {"rule": "minmax", **changes}
        target = tmp_path / name
        with CheckpointWriter(target, directories["llama"]) as writer:
            scheme = "W8A8" if name == "naive" else None  # one scale a row, to damage one
            chosen = recipe(name, scheme=scheme, **changes)
            source = open_checkpoint(directories["llama"])
            quantize_checkpoint(source, writer, chosen, samples, layout="canonical")
        return target

    return make


def damage_tensors(path, change):
    tensors = {n: np.array(t) for n, t in load_file(path / "model.safetensors").items()}
    change(tensors)
    kept = {n: t for n, t in tensors.items() if not n.startswith("__padding__")}
    save_file(kept, path / "model.safetensors")


S, Z = f"{DOWN}.weight_scale", f"{DOWN}.weight_zero_point"
CODES = [
    ("naive", poke(S, 0), "weight_scale: bad value; expected positive finite scales, found 0.0"),
    ("naive", poke(S, np.nan), "weight_scale: bad value.*found nan"),
    ("naive", poke(S, -1), "weight_scale: bad value.*found -1.0"),
    ("naive", poke(S, np.inf), "weight_scale: bad value.*found inf"),
    ("naive", put(S, lambda s: s[:5].copy()), r"weight_scale: wrong shape; expected \[32, 1\]"),
    ("naive", put(S, lambda s: s.astype(np.float16)), "weight_scale: wrong type.*found F16"),
    ("naive", poke(f"{DOWN}.weight", -128), "codes -127..127, found -128"),
    (
        "naive",
        put(f"{DOWN}.weight", lambda w: w.view(np.uint8)),
        "wrong type; expected I8, found U8",
    ),
    ("naive", drop(S), "weight_scale: is missing"),
    ("naive", put(Z, lambda _: np.ones((32, 1), "u1")), "zero_point: is not a tensor of this"),
    ("O3", poke(f"{DOWN}.weight", 1), None),
    ("O3", drop(f"{DOWN}.input_scale"), "input_scale: is missing"),
    ("O3", put(f"{DOWN}.input_scale", lambda s: -s), "input_scale: bad value"),
    ("O3", put(f"{DOWN}.input_scale", lambda s: s * np.nan), "input_scale: bad value"),
    ("W4A16", poke(S, 0), "weight_scale: bad value; expected finite scales other than 0"),
    ("W4A16", poke(S, np.nan), "weight_scale: bad value.*found nan"),
    ("W4A16", poke(S, -0.5), None),  # `signed` scales may be negative
    ("W4A16", poke(Z, 16), "weight_zero_point: bad value; expected 0..15, found 16"),
    ("W4A16", put(Z, lambda z: z.astype(np.int8)), "zero_point: wrong type"),
    ("W4A16", drop(Z), "weight_zero_point: is missing"),
    (
        "W4A16",
        put(f"{DOWN}.weight", lambda w: w[:, 1:].copy()),
        r"expected \[32, 20\], found \[32, 19",
    ),
    (
        "W4A16",
        put(f"{DOWN}.weight", lambda w: w.view(np.int8)),
        "wrong type; expected U8, found I8",
    ),
]


@pytest.mark.matrix(3)
@pytest.mark.parametrize(
    ("name", "damage", "message"), CODES, ids=[f"{c[0]} {c[2]}" for c in CODES]
)
def test_wrong_codes_scales_and_zero_points_are_refused(quantized, name, damage, message):
    path = quantized(name)
    damage_tensors(path, damage)
    if message is None:
        assert isinstance(load_all(path).blocks[1].mlp.down.weight, QuantizedWeight)
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        load_all(path)
    assert str(caught.value).startswith(str(path))


def test_zero_points_that_are_8_everywhere_are_not_stored_but_read_where_they_are(quantized):
    path = quantized("W4A8")
    before = load_all(path)
    assert before.blocks[1].mlp.down.weight.zero_point is None
    assert not any("zero_point" in name for name in open_checkpoint(path).entries)
    damage_tensors(path, put(Z, lambda _: np.full((32, 1), 8, "u1")))
    after = load_all(path)
    assert after.blocks[1].mlp.down.weight.zero_point.tolist() == [[8]] * 32
    config = open_checkpoint(path).config
    assert np.array_equal(forward(config, before, [1, 2, 3]), forward(config, after, [1, 2, 3]))
    damage_tensors(path, put(Z, lambda z: z * 2))
    with pytest.raises(CheckpointError, match="weight_zero_point: bad value; expected 0..15"):
        load_all(path)


def change_config(path, **changes):
    file = path / "config.json"
    values = json.loads(file.read_text())
    given = values["quantization_config"]
    values["quantization_config"] = {**given, **changes} if changes else "planish"
    file.write_text(json.dumps(values))


def change_group(path, part, **changes):
    """Change the first group, or its weights or input_activations."""
    groups = json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"]
    group = groups["group_0"]
    changed = {**group, **changes} if part is None else {**group, part: {**group[part], **changes}}
    change_config(path, config_groups={**groups, "group_0": changed})


@pytest.mark.matrix(3)
@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("W4A16", {}, "quantization_config: wrong form; expected an object, found str"),
        ("W4A16", {"bits": 3}, r"quantization_config\.bits: bad value; .*found 3"),
        ("W4A16", {"bits": "4"}, r"quantization_config\.bits"),
        ("W4A16", {"bits": [4]}, r"quantization_config\.bits"),
        ("W4A16", {"bits": 4.0}, r"quantization_config\.bits"),
        ("W4A16", {"bits": 8}, "weight_zero_point: is not a tensor of this model"),
        ("W4A16", {"bits": None}, "is not a tensor of this model"),
        ("naive", {"bits": 4}, "activation: bad value|group_size: bad value"),
        ("W4A16", {"group_size": 32}, r"wrong shape; expected \[32, 2\], found \[32, 1\]"),
        ("W4A16", {"group_size": 0}, r"quantization_config\.group_size"),
        ("W4A16", {"group_size": None}, r"quantization_config\.group_size"),
        ("W4A16", {"rule": "maxmin"}, r"quantization_config\.rule: bad value; .*'maxmin'"),
        ("W4A16", {"rule": None}, r"quantization_config\.rule"),
        ("W4A8", {"rule": "minmax"}, "weight_zero_point: is missing"),
        ("W4A16", {"group_size": "32"}, r"quantization_config\.group_size"),
        (
            "W4A16",
            {"quant_method": "exl2"},
            "quant_method: cannot be read; expected one of planish.*'exl2'",
        ),
        ("W4A16", {"quant_method": None}, "quant_method: cannot be read"),
        ("W4A16", {"version": 3}, r"quantization_config\.version.*one of 1, 2, found 3"),
        ("W4A16", {"version": True}, r"quantization_config\.version"),
        ("W4A16", {"activation": "static"}, r"quantization_config\.activation"),
        ("W4A16", {"activation": ["float"]}, r"quantization_config\.activation"),
        ("W4A16", {"head": "int5"}, r"quantization_config\.head"),
        ("W4A16", {"head": None}, r"quantization_config\.head"),
        ("naive", {"activation": "per_group"}, r"quantization_config\.activation"),
        ("naive", {"activation": "static"}, "input_scale: is missing"),
    ],
)
def test_a_version_1_that_does_not_fit_is_refused(quantized, name, changes, message):
    path = as_version_1(quantized(name))
    change_config(path, **changes)
    with pytest.raises(PlanishError, match=message) as caught:
        load_all(path)
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


BAD_GROUPS = [  # recipe, part of the group, changes
    ("W4A16", "weights", {"num_bits": 3}, r"num_bits: bad value; expected one of 8, 4, found 3"),
    ("W4A16", "weights", {"num_bits": "4"}, "num_bits: bad value"),
    ("W4A16", "weights", {"num_bits": 4.0}, "num_bits: bad value"),
    ("W4A16", "weights", {"num_bits": [4]}, "num_bits: bad value"),
    ("W4A16", "weights", {"type": "float"}, "type: bad value; expected one of int, found 'float'"),
    ("W4A16", "weights", {"strategy": "block"}, "strategy: bad value"),
    ("W4A16", "weights", {"strategy": "channel"}, "group_size: bad value; expected one of -1"),
    ("W4A16", "weights", {"group_size": 0}, "group_size: bad value"),
    ("W4A16", "weights", {"group_size": True}, "group_size: bad value"),
    ("W4A16", "weights", {"symmetric": "no"}, "symmetric: bad value"),
    ("W4A16", "weights", {"symmetric": 0}, "symmetric: bad value"),
    ("W4A16", "weights", {"symmetric": True, "num_bits": 8, "strategy": "tensor"}, "bad value"),
    ("W4A16", "weights", {"scale_dtype": "bfloat16"}, "scale_dtype: bad value"),
    ("W4A16", "weights", {"group_size": 32}, r"wrong shape; expected \[32, 2\], found \[32, 1\]"),
    ("W4A8", "weights", {"symmetric": False}, "weight_zero_point: is missing"),
    ("W4A8", "input_activations", {"num_bits": 4}, "input_activations.num_bits: bad value"),
    ("W4A8", "input_activations", {"strategy": "tensor"}, "activation: bad value"),
    ("W4A8", "input_activations", {"dynamic": False}, "input_activations.dynamic: bad value"),
    ("W4A8", "input_activations", {"dynamic": "local"}, "input_activations.dynamic: bad value"),
    ("naive", "input_activations", {"strategy": "group"}, "activation: bad value"),
    ("naive", "input_activations", {"strategy": "tensor", "dynamic": False}, "input_scale: is"),
    ("W4A16", None, {"weights": None}, "weights: wrong form; expected an object, found NoneType"),
    ("W4A16", None, {"input_activations": []}, "input_activations: wrong form"),
    ("W4A16", None, {"targets": "Linear"}, "targets: bad value; expected a list of names"),
    ("W4A16", None, {"targets": [3]}, "targets: bad value; expected a list of names"),
    ("W4A16", None, {"targets": []}, "is not a tensor of this model"),
    ("W8A8", None, {"targets": ["lm_head"]}, "weight_scale: is missing|not a tensor of this model"),
]


@pytest.mark.matrix(3)
@pytest.mark.parametrize(("name", "part", "changes", "message"), BAD_GROUPS)
def test_a_group_that_does_not_fit_is_refused(quantized, name, part, changes, message):
    path = quantized(name)
    change_group(path, part, **changes)
    with pytest.raises(PlanishError, match=message) as caught:
        load_all(path)
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert str(caught.value).startswith(str(path)) and str(caught.value).isprintable()


@pytest.mark.parametrize("groups", [None, [], {"group_0": None}, "Linear"])
def test_groups_of_a_wrong_form_are_refused(quantized, groups):
    path = quantized("W8A16")
    change_config(path, config_groups=groups)
    with pytest.raises(ConfigError, match=r"quantization_config\.config_groups.*an object"):
        load_all(path)


def test_a_linear_in_two_groups_is_refused(quantized):
    path = quantized("W8A16", head="int4")
    given = json.loads((path / "config.json").read_text())["quantization_config"]
    again = {**given["config_groups"], "more": given["config_groups"]["group_1"]}
    change_config(path, config_groups=again)
    with pytest.raises(ConfigError, match=r"more\.targets: .* no other group.* found lm_head"):
        load_all(path)


@pytest.mark.parametrize("activation", [("tensor", True), ("tensor", False)])
def test_a_head_whose_scale_depends_on_other_tokens_is_refused(quantized, activation):
    path = quantized("W8A16", head="int8")
    given = json.loads((path / "config.json").read_text())["quantization_config"]
    group = given["config_groups"]["group_0"]
    inputs = dict(zip(("strategy", "dynamic"), activation, strict=True)) | {"num_bits": 8}
    head = {**group, "targets": ["lm_head"], "input_activations": inputs}
    body = {**group, "targets": [name for name in group["targets"] if name != "lm_head"]}
    change_config(path, config_groups={"body": body, "head": head})
    with pytest.raises(ConfigError, match="lm_head: bad scheme; expected activations float"):
        load_all(path)


def test_codes_without_a_quantization_config_are_refused(quantized):
    path = quantized("naive")
    values = json.loads((path / "config.json").read_text())
    del values["quantization_config"]
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="weight_scale: is not a tensor of this model"):
        load_all(path)


def test_a_quantization_config_over_float_weights_leaves_them_float(quantized, directories):
    path = quantized("naive", ignore=("*",))
    weights, plain = load_all(path), load_all(directories["llama"])
    assert np.array_equal(weights.blocks[0].q.weight, plain.blocks[0].q.weight)


def test_the_head_s_width_is_the_config_s(quantized):
    path = as_version_1(quantized("W8A16", head="int8"))
    change_config(path, head="int4", group_size=32, rule="signed")
    with pytest.raises(CheckpointError, match="lm_head.weight"):
        load_all(path)
    change_config(path, head="float")
    with pytest.raises(CheckpointError, match="lm_head.weight_scale: is not a tensor"):
        load_all(path)


@pytest.mark.parametrize(
    "name", ["nothing.here", "model.norm", "model.embed_tokens", "model.layers.99.mlp.up_proj"]
)
def test_a_target_that_is_no_linear_of_the_model_is_refused(quantized, name):
    path = quantized("W8A16")
    given = json.loads((path / "config.json").read_text())["quantization_config"]
    targets = given["config_groups"]["group_0"]["targets"]
    change_group(path, None, targets=[*targets, name])
    with pytest.raises(ConfigError, match=f"targets that are linears of .* found '{name}'"):
        open_checkpoint(path)


def test_scales_of_a_narrower_type_than_declared_are_refused(quantized):
    path = quantized("W4A16")
    change_group(path, "weights", scale_dtype="float32")
    with pytest.raises(CheckpointError, match="weight_scale: wrong type; expected F32, found F16"):
        load_all(path)
