"""Tokens that only the files beside tokenizer.json have: the ids that transformers 5.24 gives."""

import json

import pytest
import tokenizers

from planish.reference.errors import PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.tokenizer import load_tokenizer

DECODER = "added_tokens_decoder"
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def token(content, special=True, **flags):
    return {**FLAGS, "content": content, "special": special, **flags}


@pytest.fixture
def loaded_with(tiny, tmp_path):
    """loaded_with(config={...}, special_tokens_map={...}) -> the tokenizer of such a directory."""

    def load(listed=(), config=None, **files):
        path = tiny.write(tmp_path / "model")
        inner = tiny.tokenizer()
        inner.add_tokens([tokenizers.AddedToken(**each) for each in listed])
        inner.save(str(path / "tokenizer.json"))
        for name, values in {"tokenizer_config": config, **files}.items():
            if values is not None:
                (path / f"{name}.json").write_text(json.dumps(values))
        return load_tokenizer(path, open_checkpoint(path).config)

    return load


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        ({"config": {DECODER: {"30": token("<x>")}}}, [3, 30, 4]),
        ({"config": {DECODER: {"31": token("<x>"), "30": token("<y>")}}}, [3, 31, 4]),
        ({"config": {DECODER: {"30": token("<y>")}, "pad_token": "<x>"}}, [3, 31, 4]),
        ({"config": {DECODER: None, "pad_token": "<x>"}}, [3, 30, 4]),
        ({"config": {"pad_token": {**token("<x>"), "__type": "AddedToken"}}}, [3, 30, 4]),
        ({"config": {"mask_token": "<x>", "bos_token": "<y>", "eos_token": None}}, [3, 31, 4]),
        ({"config": {"additional_special_tokens": ["<y>", token("<x>")]}}, [3, 31, 4]),
        ({"config": {"extra_special_tokens": {"image_token": "<x>"}}}, [3, 30, 4]),
        ({"added_tokens": {"<y>": 30, "<x>": 31}}, [3, 31, 4]),
        ({"special_tokens_map": {"pad_token": "<x>"}}, [3, 30, 4]),
        ({"config": {"pad_token": "<y>"}, "special_tokens_map": {"pad_token": "<x>"}}, [3, 30, 4]),
    ],
)
def test_a_token_that_only_another_file_has_is_one_token(loaded_with, files, ids):
    assert loaded_with(**files).encode("a <x> b") == ids


@pytest.mark.parametrize("old", [{"added_tokens": {"<x>": 30}}, {"special_tokens_map": {}}])
def test_the_older_files_are_not_read_beside_a_list_of_tokens(loaded_with, old):
    tokenizer = loaded_with(config={DECODER: {}}, **old)
    assert 30 not in tokenizer.encode("a <x> b")


def test_flags_are_those_that_the_file_states(loaded_with):
    config = {DECODER: {"30": token("<x>", special=False), "31": token("<y>", lstrip=True)}}
    tokenizer = loaded_with(config=config)
    assert tokenizer.decode([3, 30, 31, 4]) == "a<x>b"
    assert tokenizer.inner.get_added_tokens_decoder()[31].lstrip


def test_a_role_makes_a_token_special_and_leaves_its_other_flags(loaded_with):
    listed, config = [token("<x>", special=False, lstrip=True)], {"pad_token": "<x>"}
    tokenizer = loaded_with(listed, config=config)
    assert tokenizer.decode([3, 30, 4]) == "ab"
    assert tokenizer.inner.get_added_tokens_decoder()[30].lstrip


def test_a_role_of_an_ordinary_word_takes_the_word_out_of_the_text(loaded_with):
    assert loaded_with(config={"eos_token": "</s>"}).decode([3, 2, 4]) == "ab"


def test_a_token_of_another_id_is_left_out_with_a_notice(loaded_with, caplog):
    config = {DECODER: {"30": token("<y>"), "33": token("<x>"), "34": token("<z>")}}
    tokenizer = loaded_with(config=config)
    assert tokenizer.encode("a <y>") == [3, 30]
    assert not {31, 33} & set(tokenizer.encode("<x>"))
    (line,) = (record.message for record in caplog.records)
    assert "config.json: " in line
    assert "tokens ignored" in line and "2, the first '<x>' with id 33, not 31" in line


def test_the_id_in_tokenizer_json_counts_with_a_notice(loaded_with, caplog):
    tokenizer = loaded_with([token("<x>")], config={DECODER: {"7": token("<x>")}})
    assert tokenizer.encode("<x>") == [30]
    assert "1, the first '<x>' with id 7, not 30" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config": {DECODER: []}}, r"tokenizer_config.json: added_tokens_decoder: bad value"),
        ({"config": {DECODER: {"-1": token("<x>")}}}, r"decoder.-1: .*an id in 0.*found '-1'"),
        ({"config": {DECODER: {"9999999999": token("<x>")}}}, "an id in 0"),
        ({"config": {DECODER: {"99999999": token("<x>")}}}, "an id in 0"),
        ({"config": {DECODER: {"30": "<x>"}}}, "decoder.30: .*an object with content and flags"),
        ({"config": {DECODER: {"30": token(5)}}}, "decoder.30: .*a token's text, found 5"),
        ({"config": {DECODER: {"30": token("\ud800")}}}, "a token's text, Unicode"),
        ({"config": {DECODER: {"30": token("<x>", lstrip=1)}}}, "30.lstrip: .*true or false"),
        ({"config": {"pad_token": 5}}, "config.json: pad_token: .*a token's text, found 5"),
        ({"config": {"additional_special_tokens": "<x>"}}, "a list of tokens, found '<x>'"),
        ({"special_tokens_map": {"pad_token": [1]}}, "special_tokens_map.json: pad_token"),
        ({"added_tokens": {"<x>": -1}}, "added_tokens.json: <x>: .*found -1"),
        ({"added_tokens": {"<x>": True}}, "added_tokens.json: <x>: .*found True"),
        ({"added_tokens": [1]}, "added_tokens.json: wrong form"),
    ],
)
def test_what_is_no_token_is_a_typed_error(loaded_with, files, message):
    with pytest.raises(PlanishError, match=message):
        loaded_with(**files)
