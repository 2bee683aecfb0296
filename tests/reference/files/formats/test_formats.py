"""The table of file formats: one row is all that a format needs."""

from types import SimpleNamespace

import pytest

from planish.reference.errors import ConfigError
from planish.reference.files.entries import Declared
from planish.reference.files.formats import FORMATS, find_format
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.linear import Linear
from planish.reference.model.transformer import forward
from planish.reference.quantize.methods.rtn import quantize_linear
from planish.reference.scheme import int8

NOTHING = SimpleNamespace(
    detect=lambda values: values.get("quant_method") == "nothing",
    parse=lambda values, path: Declared(layout="canonical"),
    scheme=lambda directory, prefix, part: None,
    companions=lambda scheme: ((), ()),
)


def test_a_format_that_stores_nothing_leaves_a_float_model(tiny, tmp_path, monkeypatch):
    values = tiny.values()
    plain = open_checkpoint(tiny.write(tmp_path / "plain", values))
    named = {**values, "quantization_config": {"quant_method": "nothing"}}
    path = tiny.write(tmp_path / "named", named)
    with pytest.raises(ConfigError, match="cannot be read; expected one of planish, .*found 'noth"):
        open_checkpoint(path)
    monkeypatch.setitem(FORMATS, "nothing", NOTHING)
    opened = open_checkpoint(path)
    assert opened.layout == "canonical" and set(opened.schemes().values()) == {None}
    one, other = (forward(c.config, load_weights(c), [1, 2, 3]) for c in (plain, opened))
    assert (one == other).all()


def test_a_format_may_make_codes_of_what_it_finds(tiny, tmp_path, monkeypatch):
    """Here of a float tensor, on the way in: nothing else knows how a linear was stored."""

    def read(directory, prefix, scheme, shape, stack=()):
        return quantize_linear(Linear(directory.entries[f"{prefix}.weight"].map()), scheme)

    made = SimpleNamespace(
        **{**vars(NOTHING), "read": read},
    )
    made.scheme = lambda directory, prefix, part: int8() if part == "up" else None
    monkeypatch.setitem(FORMATS, "nothing", made)
    values = {**tiny.values(), "quantization_config": {"quant_method": "nothing"}}
    checkpoint = open_checkpoint(tiny.write(tmp_path / "model", values))
    block = load_weights(checkpoint, tiled=True).blocks[0]
    assert block.mlp.up.scheme == int8() and block.mlp.up.weight.layout == "tiles"
    assert block.mlp.down.scheme is None


def test_a_format_is_found_by_its_config(tmp_path):
    assert find_format({"quant_method": "planish"}, tmp_path) is FORMATS["planish"]
