"""config.json: both spellings, and every impossible value by its name."""

import json
import time

import pytest

from planish.reference.errors import ConfigError, PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.model.config import Rope


@pytest.fixture
def opened(tiny, tmp_path):
    """Open a valid model after changing its config.json."""
    paths = {kind: tiny.write(tmp_path / kind, tiny.values(kind)) for kind in ("llama", "opt")}

    def run(kind="llama", text=None, **changes):
        file = paths[kind] / "config.json"
        file.write_text(json.dumps(tiny.values(kind, **changes)) if text is None else text)
        return open_checkpoint(paths[kind]).config

    return run


def test_every_feature_of_llama_is_read(opened):
    config = opened(eos_token_id=[2, 7], bos_token_id=1)
    assert (config.model_type, config.norm, config.activation) == ("llama", "rms_norm", "silu")
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 8)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (48, 32, 40)
    assert config.ropes == (Rope(theta=10000.0, dim=8),) and config.norm_eps == 1e-5
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2, 7))
    assert config.gated_mlp and not config.qkv_bias and not config.tie_embeddings


def test_every_feature_of_opt_is_read(opened):
    config = opened("opt")
    assert (config.norm, config.activation, config.position_offset) == ("layer_norm", "relu", 2)
    assert config.tie_embeddings and config.qkv_bias and not config.ropes
    assert config.norm_placement == "pre" and config.final_norm and not config.projects


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}},
        {"rope_scaling": {"type": "default"}, "rope_theta": 5e5},
    ],
)
def test_rope_is_read_in_both_spellings(opened, spelling):
    assert opened(**spelling) == opened(rope_theta=5e5)


@pytest.mark.parametrize("spelling", [{"dtype": "float16"}, {"torch_dtype": "bfloat16"}])
def test_the_type_in_the_config_does_not_matter(opened, spelling):
    assert opened(**spelling) == opened()


def test_the_ends_of_text_of_both_configs_are_united(tiny, tmp_path):
    path = tiny.write(tmp_path / "m")
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 2, 6]}')
    assert open_checkpoint(path).config.eos_token_ids == (2, 5, 6)
    (path / "generation_config.json").write_text('{"temperature": 1}')
    assert open_checkpoint(path).config.eos_token_ids == (2,)
    (path / "generation_config.json").write_text('{"eos_token_id": "x"}')
    with pytest.raises(ConfigError, match="generation_config.json: eos_token_id: bad value"):
        open_checkpoint(path)


def test_generation_config_replaces_an_end_of_text_that_no_file_states(tiny, tmp_path):
    path = tiny.write(tmp_path / "m")
    values = json.loads((path / "config.json").read_text())
    del values["eos_token_id"]
    (path / "config.json").write_text(json.dumps(values))
    assert open_checkpoint(path).config.eos_token_ids == (2,)
    (path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    assert open_checkpoint(path).config.eos_token_ids == (5, 6)


BAD = [
    ({"model_type": "lama"}, r"model_type: unknown.*did you mean llama\?\), found 'lama'"),
    ({"model_type": "t5"}, "model_type: unknown .how to add one: .*; expected one of .*llama"),
    ({"model_type": "qwen"}, r"did you mean qwen\d or qwen\d.*\?\), found 'qwen'"),
    ({"model_type": 3}, "model_type: unknown"),
    ({"model_type": ["llama"]}, "model_type: unknown"),
    ({"model_type": None}, "model_type: unknown"),
    ({"hidden_act": "swiglu"}, "hidden_act: bad value; expected one of relu, silu.*'swiglu'"),
    ({"hidden_act": ["silu"]}, "hidden_act: bad value"),
    ({"rope_scaling": {"rope_type": "mrope"}}, "rope_type: bad value.*linear.*'mrope'"),
    ({"rope_scaling": {"type": "proportional"}}, "type: bad value.*'proportional'"),
    ({"rope_scaling": {"type": "linear"}}, "factor: bad value.*found None"),
    ({"rope_parameters": {"rope_type": "llama3"}}, "low_freq_factor: bad value.*found None"),
    ({"rope_parameters": {"rope_type": 0}}, "rope_type: bad value"),
    ({"rope_parameters": [1]}, "rope_parameters: bad value; expected an object"),
    ({"rope_theta": -1.0}, "rope_theta: bad value"),
    ({"rope_theta": "10000"}, "rope_theta: bad value"),
    ({"hidden_size": 30}, "hidden_size: bad value; expected a multiple of 4 heads, found 30"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: bad value; expected a divisor of 4"),
    ({"num_key_value_heads": 8}, "num_key_value_heads: bad value"),
    ({"head_dim": 7}, "head_dim: bad value; expected an even number"),
    ({"num_attention_heads": 0}, "num_attention_heads: bad value"),
    ({"hidden_size": -32}, "hidden_size: bad value"),
    ({"vocab_size": 0}, "vocab_size: bad value"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers: bad value; expected an integer in 1.."),
    ({"num_hidden_layers": 10**400}, "num_hidden_layers: bad value"),
    ({"intermediate_size": 10**18}, "intermediate_size: bad value"),
    ({"max_position_embeddings": 2**62}, "max_position_embeddings: bad value"),
    ({"vocab_size": "48"}, "vocab_size: bad value.*found '48'"),
    ({"hidden_size": 32.5}, "hidden_size: bad value"),
    ({"hidden_size": True}, "hidden_size: bad value"),
    ({"hidden_size": [32]}, "hidden_size: bad value"),
    ({"hidden_size": None}, "hidden_size: bad value.*found None"),
    ({"rms_norm_eps": 0}, "rms_norm_eps: bad value"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps: bad value"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps: bad value"),
    ({"rms_norm_eps": float("nan")}, "is not JSON: NaN is not a finite number"),
    ({"rms_norm_eps": float("inf")}, "is not JSON: Infinity is not"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps: bad value"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: bad value; expected true or false"),
    ({"attention_bias": 1}, "attention_bias: bad value"),
    ({"eos_token_id": -2}, "eos_token_id: bad value"),
    ({"eos_token_id": 2.5}, "eos_token_id: bad value"),
    ({"eos_token_id": [2, "x"]}, "eos_token_id: bad value"),
    ({"bos_token_id": 1.5}, "bos_token_id: bad value"),
]


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("changes", "message"), BAD, ids=str)
def test_an_impossible_value_is_refused_by_name(opened, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        opened(**changes)
    text = str(caught.value)
    assert "llama/config.json: " in text and text.isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1]", "wrong form; expected a JSON object, found list"),
        ("null", "expected a JSON object, found NoneType"),
        ('{"model_type": "llama", "model_type": "opt"}', "a key occurs twice"),
        ('{"rms_norm_eps": 1e999}', "is not JSON: 1e999 is not a finite number"),
        ("[" * 100_000, "is not JSON"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
        ("<html>404</html>", "is not JSON"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not JSON|bad value|unknown"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(opened, text, message):
    with pytest.raises(ConfigError, match=f"config.json: .*({message})") as caught:
        opened(text=text)
    assert str(caught.value).isprintable()


def test_a_config_that_is_not_utf_8_is_refused(tiny, tmp_path):
    path = tiny.write(tmp_path / "m")
    (path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    with pytest.raises(ConfigError, match="config.json: cannot be read: 'utf-8'"):
        open_checkpoint(path)


@pytest.mark.parametrize("layers", [10**9, 10**7, 3])
def test_more_layers_than_the_file_has_fail_fast(opened, layers):
    start = time.perf_counter()
    with pytest.raises(PlanishError, match=r"num_hidden_layers: bad|layers\.2\..*is missing"):
        opened(num_hidden_layers=layers)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "gelu_10"}, "activation_function: bad value"),
        ({"ffn_dim": 0}, "ffn_dim: bad value"),
        ({"num_attention_heads": 5}, "hidden_size: bad value; expected a multiple of 5"),
        ({"do_layer_norm_before": 1}, "do_layer_norm_before: bad value"),
        ({"word_embed_proj_dim": -16}, "word_embed_proj_dim: bad value"),
    ],
)
def test_opt_s_own_keys_are_checked_too(opened, changes, message):
    with pytest.raises(ConfigError, match=message):
        opened("opt", **changes)
