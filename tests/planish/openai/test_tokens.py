"""/tokenize and its relatives, in the forms of vLLM and llama.cpp; the bytes of tokens."""

import json
from dataclasses import replace

import pytest
from openai.types import Model
from tokenizers import Tokenizer as Library

from planish.openai import tokens
from planish.openai.vocabulary import Vocabulary
from planish.reference.text.chat_template import load_chat_template
from planish.reference.text.tokenizer import Tokenizer, load_tokenizer
from tests.planish.openai.conftest import body
from tests.reference.text.test_chat import GIVEN, GOLDEN, MADE, write_model


def tokenized(api, **fields):
    return tokens.tokenize(body(**fields), api.served)


def test_a_text_and_its_ids(api):
    found = tokenized(api, prompt="a</s>", add_special_tokens=False)
    assert found == {
        "tokens": [*api.served.tokenizer.encode("a"), 257],
        "count": 2,
        "max_model_len": 128,
    }
    back = tokens.detokenize(body(tokens=found["tokens"]), api.served)
    assert back == {"prompt": "a</s>", "content": "a</s>"}


def test_llama_cpps_names(api):
    found = tokenized(api, content="é</s>", with_pieces=True, parse_special=False)
    assert [one["piece"] for one in found["tokens"]][:3] == ["bytes:\\xc3", "bytes:\\xa9", "<"]
    assert found["count"] == 6
    assert tokenized(api, content="")["tokens"] == []


def test_a_conversation_and_its_ids(api):
    messages = [{"role": "user", "content": "Hi"}]
    found = tokenized(api, messages=messages, return_token_strs=True)
    assert found["tokens"] == list(api.chat("Hi").requests[0].prompt)
    assert found["token_strs"][:2] == ["<s>", "u"]
    text = tokens.apply_template(body(messages=messages), api.served)
    assert text == {"prompt": "<s>user: Hi\nassistant: "}


FAMILIES = [  # of these the text does not depend on the day
    family
    for family in GIVEN["families"]
    if "strftime_now" not in (GOLDEN / f"{family}.jinja").read_text(encoding="utf-8")
]


@pytest.mark.matrix(4)
@pytest.mark.parametrize("family", FAMILIES)
def test_public_templates_have_the_text_and_the_ids_of_transformers(api, tmp_path, family):
    path = write_model(tmp_path, family)
    config = replace(api.served.config, vocab_size=10_000)
    served = replace(
        api.served,
        config=config,
        tokenizer=load_tokenizer(path, config),
        template=load_chat_template(path),
        context=4096,
    )
    golden, asked = MADE[family]["one turn"], body(**GIVEN["conversations"]["one turn"])
    assert tokens.apply_template(asked, served) == {"prompt": golden["text"]}
    assert tokens.tokenize(asked, served)["tokens"] == golden["ids"]
    plain = body(prompt=golden["text"], add_special_tokens=False)
    assert tokens.tokenize(plain, served)["tokens"] == golden["parsed"]
    back = tokens.detokenize(body(tokens=golden["parsed"]), served)["prompt"]
    assert back == served.tokenizer.inner.decode(golden["parsed"], skip_special_tokens=False)


@pytest.mark.parametrize(
    ("read", "fields"),
    [
        (tokens.tokenize, {}),
        (tokens.tokenize, {"prompt": 5}),
        (tokens.tokenize, {"prompt": "a", "model": "other"}),
        (tokens.detokenize, {}),
        (tokens.detokenize, {"tokens": ["a"]}),
        (tokens.detokenize, {"tokens": [300]}),
        (tokens.apply_template, {"messages": []}),
        (tokens.apply_template, {"messages": [{"role": "user"}], "chat_template": "x"}),
    ],
)
def test_other_bodies_are_refused(api, read, fields):
    assert api.refusal(lambda: read(body(**fields), api.served)).status in (400, 404)


def test_special_tokens_have_their_names(api):
    found = tokens.tokenizer_info(api.served)
    assert (found["bos_token"], found["eos_token"]) == ("<s>", "</s>")
    assert "messages" in found["chat_template"]
    assert tokens.tokenizer_info(api.with_(template=None).served)["chat_template"] is None


def test_a_base_models_special_tokens_are_those_of_its_tokenizer(api, tmp_path):
    """Qwen's tokenizer has no BOS, though its config has one."""
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": null, "eos_token": "</s>"}')
    inner = api.served.tokenizer.inner
    tokenizer = Tokenizer(inner, api.served.config, tmp_path / "tokenizer.json")
    base = api.with_(template=None, tokenizer=tokenizer).served
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    found = tokens.tokenizer_info(base)
    assert (found["bos_token"], found["eos_token"]) == (None, "</s>")


def test_the_model_is_shown_with_its_defaults(api):
    shown = api.served.model_object()
    assert Model.model_validate(shown).id == "tiny"
    assert (shown["max_model_len"], shown["default_sampling"]["temperature"]) == (128, 1.0)


def test_bytes_of_sentencepiece_are_its_texts(api):
    inner = Library.from_file(str(GOLDEN / "sentencepiece.json"))
    vocabulary = Vocabulary(Tokenizer(inner, api.served.config, GOLDEN))
    text = "Hi 😀 there"
    ids = inner.encode(text, add_special_tokens=False).ids
    assert b"".join(map(vocabulary.bytes_of, ids)).decode().strip() == text
    assert json.dumps([vocabulary.text_of(token) for token in ids])


def test_a_text_that_takes_gigabytes_is_refused_before_it_is_tokenized(api, monkeypatch):
    monkeypatch.setattr(Tokenizer, "encode", None)
    refused = api.refusal(tokenized, api=api, prompt="a" * (tokens.LONGEST_TEXT + 1))
    assert (refused.status, refused.param) == (400, "prompt")
    assert "send it in parts" in str(refused)
