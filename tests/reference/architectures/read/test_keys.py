"""How a config's values may be written: what transformers reads as the same is read as the same."""

import json
from pathlib import Path

import pytest

from planish.reference.architectures import ENTRIES, model_config
from planish.reference.errors import ConfigError
from planish.reference.files.load import open_checkpoint

GOLDEN, PATH = Path(__file__).parents[3] / "golden", Path("config.json")
CONFIGS = {}  # the first golden of each model_type
for _file in sorted(GOLDEN.glob("*/config.json")):
    _values = json.loads(_file.read_text())
    CONFIGS.setdefault(_values["model_type"], _values)


def rewritten(value):
    """Every integer as a float, every float that is a whole number as an integer."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        inner = {key: rewritten(each) for key, each in pairs}
        return inner if isinstance(value, dict) else list(inner.values())
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def test_every_architecture_has_a_config_here():
    assert set(CONFIGS) == set(ENTRIES)


@pytest.mark.parametrize("kind", CONFIGS)
def test_numbers_may_be_written_as_floats_or_integers(kind):
    values = rewritten(CONFIGS[kind])
    assert isinstance(values["vocab_size" if kind != "chatglm" else "padded_vocab_size"], float)
    config, plain = model_config(values, PATH), model_config(CONFIGS[kind], PATH)
    assert repr(config) == repr(plain)  # 64.0 would be equal to 64


# Keys whose null says something, as in transformers: no such token, window or cap, and as many
# key-value heads as queries
NULL_SAYS = {"bos_token_id", "eos_token_id", "sliding_window", "num_key_value_heads"}
NULL_SAYS |= {"attn_logit_softcapping", "final_logit_softcapping", "model_type"}


def attempt(values):
    try:
        return model_config(values, PATH)
    except ConfigError as problem:
        return str(problem)


@pytest.mark.parametrize("kind", CONFIGS)
def test_null_is_absence_or_an_error_where_a_flag_would_be_true(kind):
    values = CONFIGS[kind]
    for name in values.keys() - NULL_SAYS:
        absent = attempt({key: value for key, value in values.items() if key != name})
        null = attempt({**values, name: None})
        refused = f"config.json: {name}: bad value; expected true or false, found None"
        assert null in (absent, refused)
        assert null != refused or isinstance(values[name], bool)


NULLS = [
    *("tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "rms_norm_eps"),
    *("head_dim", "rope_theta", "rope_scaling", "rope_parameters", "max_position_embeddings"),
]


def test_null_is_the_default_of_transformers(tiny):
    values = {key: value for key, value in tiny.values().items() if key not in NULLS}
    assert model_config(values | dict.fromkeys(NULLS), PATH) == model_config(values, PATH)
    assert not model_config(values, PATH).tie_embeddings


@pytest.mark.parametrize(
    ("value", "ids"), [(-1, ()), (None, ()), (5.0, (5,)), ([7.0, -1, 9], (7, 9)), ([], ())]
)
def test_minus_one_and_null_are_no_token(tiny, value, ids):
    config = model_config({**tiny.values(), "eos_token_id": value, "bos_token_id": value}, PATH)
    assert config.eos_token_ids == ids
    assert config.bos_token_id == (ids[0] if ids else None)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('{"eos_token_id": [5.0, 6]}', (2, 5, 6)),
        ('{"eos_token_id": null}', (2,)),
        ('{"eos_token_id": -1}', (2,)),
    ],
)
def test_a_generation_config_is_read_in_the_same_way(tiny, tmp_path, text, ids):
    path = tiny.write(tmp_path / "m")
    (path / "generation_config.json").write_text(text, encoding="utf-8-sig")
    assert open_checkpoint(path).config.eos_token_ids == ids


def test_a_byte_order_mark_is_no_part_of_the_config(tiny, tmp_path):
    path = tiny.write(tmp_path / "m")
    plain = open_checkpoint(path)
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text, encoding="utf-8-sig")
    assert (path / "config.json").read_bytes().startswith(b"\xef\xbb\xbf{")
    marked = open_checkpoint(path)
    assert (marked.config, marked.values) == (plain.config, plain.values)
