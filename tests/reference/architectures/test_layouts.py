"""Tiles on disk and canonical ones: the same model, read as views of the file where it can be."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import CheckpointError, ConfigError, PlanishError, RecipeError
from planish.reference.files.formats.scales import unusable_scales
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import float_weight, linear
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import needs_calibration, recipe
from planish.reference.quantized import to_layout

TOKENS = np.random.default_rng(5).integers(0, 48, 40)
DOWN = "model.layers.1.mlp.down_proj"
Q = "model.layers.0.self_attn.q_proj"
ODD = {"hidden_size": 42, "intermediate_size": 75, "num_attention_heads": 3, "head_dim": 14}
VARIANTS = [
    ("W8A8", {"head": "int8"}),
    ("O3", {}),
    ("W8A16", {"head": "int4", "group_size": 32}),
    ("W4A16", {"head": "int4", "group_size": 32}),
    ("W4A16", {"rule": "minmax", "head": "int8", "group_size": 32, "scale_dtype": "float32"}),
    ("W4A8", {"rule": "minmax", "head": "int4", "group_size": 64}),
    ("W4A8", {"rule": "absmax", "group_size": -1, "ignore": ("*.o_proj",)}),
    ("float", {"head": "int4"}),
]


@pytest.fixture
def odd(tiny, tmp_path):
    """A Llama whose sizes are no multiples of 16 outputs, 8 or 4 inputs, or a group."""
    values = tiny.values(**ODD, num_key_value_heads=1, vocab_size=51)
    return tiny.write(tmp_path / "odd", values)


@pytest.fixture
def written(samples, tmp_path):
    """written(source, layout, recipe name, changes) -> directory."""

    def make(source, layout, name, **changes):
        chosen, target = recipe(name, **changes), tmp_path / layout
        given = samples if needs_calibration(chosen) else None
        with CheckpointWriter(target, source, overwrite=True) as writer:
            quantize_checkpoint(open_checkpoint(source), writer, chosen, given, layout=layout)
        return target

    return make


def load(path, tiled=False):
    weights = load_weights(open_checkpoint(path), tiled)
    return replace(weights, blocks=list(weights.blocks))


def logits(path):
    return forward(open_checkpoint(path).config, load(path), TOKENS)


def quantized_linears(weights):
    parts = [part for block in weights.blocks for part in block_linears(block).values()]
    linears = (*parts, weights.head)
    return [part for part in linears if not isinstance(part.weight, np.ndarray)]


def arrays(weight):
    present = (weight.codes, weight.scale, weight.zero_point)
    return [array for array in present if array is not None]


def same(one, other):
    pairs = zip(arrays(one), arrays(other), strict=True)
    return all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs) and (
        (one.layout, one.shape, one.scheme) == (other.layout, other.shape, other.scheme)
    )


@pytest.mark.matrix(8)
@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_both_layouts_hold_the_same_model(tiny, written, tmp_path, name, changes, tied):
    values = tiny.values(**ODD, num_key_value_heads=1, vocab_size=51, tie_word_embeddings=tied)
    source = tiny.write(tmp_path / "source", values)
    paths = {lay: written(source, lay, name, **changes) for lay in ("tiles", "canonical")}
    assert np.array_equal(logits(paths["tiles"]), logits(paths["canonical"]))
    for tiled, layout in ((False, "canonical"), (True, "tiles")):
        loaded = [quantized_linears(load(path, tiled)) for path in paths.values()]
        assert len(loaded[0]) >= 1
        for one, other in zip(*loaded, strict=True):
            assert one.weight.layout == layout and same(one.weight, other.weight)
            assert one.activation == other.activation
    for layout, path in paths.items():
        assert open_checkpoint(path).layout == layout


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("name", "changes"), VARIANTS, ids=str)
def test_tiles_are_views_of_the_file_at_cache_lines(odd, written, name, changes):
    for layer in quantized_linears(load(written(odd, "tiles", name, **changes), tiled=True)):
        for array in arrays(layer.weight):
            assert isinstance(array, np.memmap) and not array.flags.owndata
            assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous


@pytest.mark.parametrize(("rule", "stored"), [("signed", False), ("minmax", True)])
@pytest.mark.parametrize("layout", ["tiles", "canonical"])
def test_only_the_rule_minmax_stores_zero_points(odd, written, layout, rule, stored):
    path = written(odd, layout, "W4A8", rule=rule, head="int4", group_size=32)
    for tiled in (False, True):
        layers = quantized_linears(load(path, tiled))
        assert all((layer.weight.zero_point is not None) == stored for layer in layers)
    assert any("zero_point" in name for name in open_checkpoint(path).entries) == stored


def test_a_float_model_has_no_layout_and_loads_either_way(directories):
    checkpoint = open_checkpoint(directories["llama"])
    assert checkpoint.layout is None
    plain, tiled = (load_weights(checkpoint, tiled).blocks[0].q.weight for tiled in (False, True))
    assert np.array_equal(plain, tiled)


def change_config(path, **changes):
    values = json.loads((path / "config.json").read_text())
    merged = {**values["quantization_config"], **changes}
    kept = {key: value for key, value in merged.items() if value != "left out"}
    (path / "config.json").write_text(json.dumps({**values, "quantization_config": kept}))


@pytest.mark.parametrize("layout", ["tile", None, True, ["tiles"], 4, "left out"])
def test_an_unknown_layout_is_refused(odd, written, layout):
    path = written(odd, "tiles", "W4A16", group_size=32)
    change_config(path, layout=layout)
    with pytest.raises(ConfigError, match=r"quantization_config\.layout: .* tiles, canonical"):
        open_checkpoint(path)


def test_an_unknown_layout_is_not_written(odd, written, tmp_path):
    with pytest.raises(RecipeError, match="layout: unknown; expected one of tiles, .*'tile'"):
        written(odd, "tile", "W4A16")
    assert not (tmp_path / "tile").exists()


@pytest.mark.parametrize("name", ["W8A16", "W4A16"])
@pytest.mark.parametrize(("written_as", "stated"), [("tiles", "canonical"), ("canonical", "tiles")])
def test_the_wrong_layout_is_a_wrong_shape(odd, written, name, written_as, stated):
    path = written(odd, written_as, name)
    change_config(path, layout=stated)
    for tiled in (False, True):
        with pytest.raises(CheckpointError, match="weight: wrong shape; expected") as caught:
            load(path, tiled)
        assert str(caught.value).startswith(str(path))


def damage(path, name, change):
    tensors = {n: np.array(t) for n, t in load_file(path / "model.safetensors").items()}
    tensors[name] = change(tensors[name])
    kept = {n: t for n, t in tensors.items() if not n.startswith("__padding__")}
    save_file(kept, path / "model.safetensors")


def put(index, value):
    def change(tensor):
        tensor[index] = value
        return tensor

    return change


S, Z = f"{DOWN}.weight_scale", f"{DOWN}.weight_zero_point"  # 42 outputs: 10 in the last tile
DAMAGE = [  # W4A16 g=32 minmax: codes [3, 10, 16, 4], scales [3, 3, 16]
    ("W4A16", S, put((0, 1, 2), np.nan), "finite scales other than 0, found nan"),
    ("W4A16", S, put((2, 2, 9), np.inf), "finite scales other than 0, found inf"),
    ("W4A16", S, put((1, 0, 15), 0), "finite scales other than 0, found 0.0"),
    ("W4A16", S, put((2, 0, 0), -np.inf), "found -inf"),
    ("W4A16", S, put((0, 0, 0), -0.25), None),
    ("W4A16", S, put((0, 0, 0), 6e-8), None),
    ("W4A16", S, put((2, slice(None), slice(10, 16)), np.nan), None),
    ("W4A16", S, lambda s: s[:2].copy(), r"wrong shape; expected \[3, 3, 16\], found \[2, 3, 16"),
    ("W4A16", S, lambda s: s.astype(np.float64), "wrong type; expected F16 or F32, found F64"),
    ("W4A16", S, lambda s: s.reshape(3, 48), "wrong shape"),
    ("W4A16", Z, put((2, 2, 9), 16), "expected 0..15, found 16"),
    ("W4A16", Z, put((0, 0, 0), 255), "expected 0..15, found 255"),
    ("W4A16", Z, put((2, slice(None), slice(10, 16)), 255), None),
    ("W4A16", Z, lambda z: z[:, :2].copy(), r"wrong shape; expected \[3, 3, 16\]"),
    ("W4A16", f"{DOWN}.weight", lambda w: w[:, :9].copy(), r"expected \[3, 10, 16, 4\]"),
    ("W4A16", f"{DOWN}.weight", lambda w: w.view(np.int8), "expected U8, found I8"),
    ("W8A16", f"{DOWN}.weight", put((0, 3, 1, 2), -128), "codes -127..127, found -128"),
    ("W8A16", f"{DOWN}.weight", put((2, 3, 10), -128), None),  # output 42 of 0..41
    ("W8A16", f"{DOWN}.weight", put((0, 18, 1, 3), -128), None),  # input 75 of 0..74
    ("W8A16", f"{DOWN}.weight", lambda w: w[:2].copy(), r"expected \[3, 19, 16, 4\], found \[2"),
    ("W8A16", S, put((3, 0), np.nan), "positive finite scales, found nan"),
    ("W8A16", S, lambda s: s[:16].copy(), r"wrong shape; expected \[42, 1\], found \[16, 1\]"),
]


@pytest.mark.matrix(8)
@pytest.mark.parametrize(("name", "tensor", "change", "message"), DAMAGE)
@pytest.mark.parametrize("tiled", [False, True])
def test_damaged_tiles_are_refused_by_name(odd, written, name, tensor, change, message, tiled):
    changes = {"rule": "minmax", "group_size": 32} if name == "W4A16" else {}
    path = written(odd, "tiles", name, **changes)
    damage(path, tensor, change)
    if message is None:
        assert load(path, tiled).blocks[1].mlp.down.weight.shape == (42, 75)
        return
    with pytest.raises(PlanishError, match=message) as caught:
        load(path, tiled)
    assert str(caught.value).startswith(str(path)) and f"{tensor}:" in str(caught.value)


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("name", "tensor", "padding", "value"),
    [
        ("W4A8", f"{DOWN}.weight", (2, slice(None), slice(10, 16)), 255),
        ("W4A8", f"{DOWN}.weight", (slice(None), 9, slice(None), 3), 255),  # inputs 75 and 79
        ("W4A8", S, (2, slice(None), slice(10, 16)), np.nan),
        ("W4A8", Z, (2, slice(None), slice(10, 16)), 99),
        ("W8A8", f"{DOWN}.weight", (2, slice(None), slice(10, 16)), -128),
        ("W8A8", f"{DOWN}.weight", (slice(None), 18, slice(None), 3), 101),
    ],
)
def test_the_values_of_the_padding_do_not_matter(odd, written, name, tensor, padding, value):
    changes = {"rule": "minmax", "group_size": 32} if name == "W4A8" else {}
    path = written(odd, "tiles", name, **changes)
    before = logits(path)
    damage(path, tensor, put(padding, value))
    assert np.array_equal(logits(path), before)


@pytest.mark.parametrize("name", ["W8A16", "W8A8", "W4A16", "W4A8"])
def test_the_definition_computes_from_tiles_what_it_computes_from_the_canonical_layout(
    odd, written, name
):
    path, x = written(odd, "tiles", name), np.random.default_rng(0).normal(size=(3, 42))
    one, other = (load(path, tiled).blocks[0].q for tiled in (False, True))
    x = x.astype(np.float32)
    assert np.array_equal(linear(x, one), linear(x, other))
    with pytest.raises(TypeError, match="expected a linear in floats, found int"):
        float_weight(other)


@pytest.mark.matrix(2)
@pytest.mark.parametrize("changes", [{"rule": "minmax"}, {}, {"group_size": -1}], ids=str)
@pytest.mark.parametrize("name", ["W4A16", "W8A16", "O1"])
def test_tile_and_untile_are_inverses(odd, written, name, changes):
    changes = {"group_size": 32, **changes} if name == "W4A16" else {}
    for layer in quantized_linears(load(written(odd, "canonical", name, **changes))):
        tiles = to_layout(layer.weight, "tiles")
        assert same(to_layout(tiles, "canonical"), layer.weight)
        assert same(to_layout(to_layout(tiles, "canonical"), "tiles"), tiles)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_float16_scale_is_judged_as_numpy_judges_it(dtype):
    scale = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(dtype)
    assert np.array_equal(unusable_scales(scale), ~np.isfinite(scale) | (scale == 0))


def test_large_but_finite_floats_are_accepted(tiny, tmp_path):
    """Their squares overflow, so the quick check of a sum of squares must not be the last word."""
    tensors = tiny.tensors(tiny.values())
    tensors["model.embed_tokens.weight"][3, 4] = 3e38
    weights = load(tiny.write(tmp_path / "large", None, tensors))
    assert weights.embed[3, 4] == np.float32(3e38)
