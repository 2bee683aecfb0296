"""generation_config.json: the sampling that a model asks for, or one line about what is wrong."""

import json

import pytest

from planish.reference.errors import ConfigError
from planish.reference.text.generation_config import describe_sampling, load_sampling_defaults
from planish.reference.text.sampling import Sampling

QWEN = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}


@pytest.fixture
def load(tmp_path):
    """load(values) -> the sampling of a directory with this generation_config.json."""

    def call(values, vocab_size=300):
        text = values if isinstance(values, str) else json.dumps(values)
        (tmp_path / "generation_config.json").write_text(text)
        return load_sampling_defaults(tmp_path, vocab_size)

    return call


def test_a_model_that_samples_says_how(load):
    found = load({"do_sample": True, **QWEN, "eos_token_id": 5, "transformers_version": "5"})
    assert found == Sampling(temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05)


@pytest.mark.parametrize("samples", [{}, {"do_sample": False}, {"do_sample": None}])
def test_a_model_that_does_not_ask_for_samples_says_nothing(load, samples):
    assert load({**QWEN, **samples}) is None


def test_a_model_without_the_file_says_nothing(tmp_path):
    assert load_sampling_defaults(tmp_path, 300) is None
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert load_sampling_defaults(tmp_path / "model.gguf", 300) is None


def test_what_the_file_leaves_out_keeps_every_token(load):
    assert load({"do_sample": True}) == Sampling(temperature=1.0)
    assert load({"do_sample": True, "temperature": None, "min_p": 0.1}) == Sampling(
        temperature=1.0, min_p=0.1
    )


@pytest.mark.parametrize(("top_k", "kept"), [(0, 0), (-1, 0), (40.0, 40), (1000, 300), (None, 0)])
def test_top_k_may_mean_all_tokens(load, top_k, kept):
    assert load({"do_sample": True, "top_k": top_k}).top_k == kept


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("do_sample", 1, "true or false"),
        ("do_sample", "yes", "true or false"),
        ("temperature", "0.7", "a number"),
        ("temperature", True, "a number"),
        ("temperature", -1, "0 or a positive"),
        ("temperature", 10**400, "a number"),
        ("top_p", 0, "above 0"),
        ("top_p", 2, "above 0"),
        ("top_p", [0.9], "a number"),
        ("top_k", 2.5, "a count"),
        ("top_k", -2, "a count"),
        ("top_k", True, "a count"),
        ("min_p", 1.5, "0..1"),
        ("repetition_penalty", 0, "a positive number"),
    ],
)
def test_a_bad_value_is_one_line_with_its_file_and_key(load, name, value, expected):
    with pytest.raises(ConfigError) as refused:
        load({"do_sample": True, name: value})
    line = str(refused.value)
    assert f"generation_config.json: {name}: bad value; expected {expected}" in line
    assert "\n" not in line and "found" in line


@pytest.mark.parametrize("text", ["", "[]", '{"do_sample": true', '{"top_p": NaN}'])
def test_a_file_that_is_no_object_is_one_line(load, text):
    with pytest.raises(ConfigError, match=r"generation_config\.json: (is not JSON|wrong form)"):
        load(text)


def test_settings_that_planish_lacks_are_named(load, caplog):
    load({"do_sample": True, "typical_p": 0.9, "num_beams": 4, "no_repeat_ngram_size": 0})
    assert "typical_p, num_beams: not used" in caplog.text
    caplog.clear()
    load({"do_sample": True, "typical_p": 1.0, "num_beams": 1, "penalty_alpha": None})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        (Sampling(), "temperature 0"),
        (Sampling(top_k=5, repetition_penalty=1.1), "temperature 0, repetition_penalty 1.1"),
        (Sampling(temperature=0.7, top_k=20, top_p=0.8), "temperature 0.7, top_k 20, top_p 0.8"),
        (Sampling(temperature=1, logit_bias=((3, 1.0),)), "temperature 1, logit_bias of 1"),
    ],
)
def test_sampling_in_words(sampling, words):
    assert describe_sampling(sampling) == words
