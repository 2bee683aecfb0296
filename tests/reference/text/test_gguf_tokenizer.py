"""What a GGUF file's keys say about chats; the tokenizer itself is in test_gguf.py."""

import pytest

from planish.reference.errors import TokenizerError
from planish.reference.text.gguf_tokenizer import gguf_chat_template
from tests.gguf_files import key, number_key, string, text_key, texts_key, write

PREFIX = "tokenizer.ggml"
TOKENS = texts_key(f"{PREFIX}.tokens", ["<s>", "</s>", "<|end|>", "a"])


def test_the_template_and_the_tokens_that_it_names(tmp_path):
    keys = [TOKENS, text_key("tokenizer.chat_template", "{{ messages }}")]
    keys += [number_key(f"{PREFIX}.{name}_token_id", n) for n, name in enumerate(["bos", "eos"])]
    keys += [number_key(f"{PREFIX}.eot_token_id", 2), number_key(f"{PREFIX}.unknown_token_id", 0)]
    assert gguf_chat_template(write(tmp_path / "model.gguf", keys)) == {
        "chat_template": "{{ messages }}",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "eot_token": "<|end|>",
        "unk_token": "<s>",
    }


def test_several_templates_have_names(tmp_path):
    keys = [text_key("tokenizer.chat_template.tool_use", "tools")]
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    path = write(tmp_path / "model.gguf", [text_key("tokenizer.chat_template", "plain"), *keys])
    assert gguf_chat_template(path) == {"chat_template": named}
    alone = gguf_chat_template(write(tmp_path / "alone.gguf", keys))["chat_template"]
    assert {"name": "default", "template": "tools"} in alone


def test_a_file_without_either_has_nothing(tmp_path):
    assert gguf_chat_template(write(tmp_path / "model.gguf")) == {}


BAD = {
    "template": ([number_key("tokenizer.chat_template", 3)], "expected a string, found 'int'"),
    "id": ([TOKENS, number_key(f"{PREFIX}.eos_token_id", 4)], "expected 0..3, found"),
    "not an id": ([TOKENS, key(f"{PREFIX}.bos_token_id", 8, string("x"))], "expected 0..3"),
    "no tokens": ([number_key(f"{PREFIX}.bos_token_id", 0)], "expected a list of strings"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_value_of_another_kind_is_refused(tmp_path, name):
    keys, message = BAD[name]
    with pytest.raises(TokenizerError, match=message):
        gguf_chat_template(write(tmp_path / "model.gguf", keys))
