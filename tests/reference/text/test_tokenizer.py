"""Text to ids and back, piece by piece: no split character, no lost space."""

import json
import os

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors

from planish.reference.errors import PromptError, TokenizerError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.tokenizer import TextStream, load_tokenizer, read_text


def byte_level():
    """One token per byte, as byte-level BPE falls back to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def sentencepiece_like():
    """Llama's decoder: words marked by a low line, bytes as <0x..>, the first space dropped."""
    words = ["<unk>", "▁Hello", "▁world", "lo", "▁", "!", "▁a"]
    vocabulary = {word: i for i, word in enumerate(words)}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return inner


def pieces(inner, prompt, ids):
    stream = TextStream(inner, prompt)
    return [stream.push(token) for token in ids] + [stream.finish()]


def test_an_emoji_split_over_byte_tokens_comes_out_whole():
    inner = byte_level()
    ids = inner.encode("a🙂b").ids
    assert len(ids) == 6
    assert pieces(inner, inner.encode("x").ids, ids) == ["a", "", "", "", "🙂", "b", ""]


def test_what_never_becomes_a_character_comes_out_at_the_end():
    inner = byte_level()
    ids = inner.encode("a🙂").ids[:3]
    assert pieces(inner, inner.encode("x").ids, ids) == ["a", "", "", "�"]


def test_the_first_new_word_keeps_its_space():
    inner = sentencepiece_like()
    ids = {word: inner.token_to_id(word) for word in ("▁Hello", "▁world", "!")}
    found = pieces(inner, [ids["▁Hello"]], [ids["▁world"], ids["!"]])
    assert "".join(found) == " world!"
    assert inner.decode([ids["▁world"]]) == "world"  # alone it would be lost


def test_byte_fallback_tokens_are_joined_to_a_character():
    inner = sentencepiece_like()
    ids = [inner.token_to_id(f"<0x{byte:02X}>") for byte in "é🙂".encode()]
    found = pieces(inner, [inner.token_to_id("▁Hello")], ids)
    assert "".join(found) == "é🙂" and "�" not in "".join(found)


@given(st.text(min_size=1, max_size=12), st.text(min_size=1, max_size=20))
@settings(max_examples=60)
def test_the_pieces_join_to_the_text(prompt, text):
    inner = byte_level()
    found = pieces(inner, inner.encode(prompt).ids, inner.encode(text).ids)
    assert "".join(found) == text


@given(st.lists(st.integers(0, 262), min_size=1, max_size=20))
@settings(max_examples=100)
def test_no_sequence_of_tokens_breaks_the_stream(ids):
    inner = sentencepiece_like()
    found, whole = "".join(pieces(inner, [1], ids)), inner.decode([1, *ids])
    if "�" not in whole:  # a broken run of bytes is decoded as one, the stream is ahead of it
        assert found == whole[len(inner.decode([1])) :]


@pytest.fixture
def model(tiny, tmp_path):
    path = tiny.write(tmp_path / "model")
    return path, open_checkpoint(path).config


def test_a_tokenizer_encodes_and_decodes(model):
    tokenizer = load_tokenizer(*model)
    assert tokenizer.encode("a b z") == [3, 4, 28]
    assert tokenizer.decode([3, 4]) == "ab"
    assert tokenizer.stream([3]).push(4) == "b"


def test_truncation_and_padding_of_the_file_are_ignored(model, tiny):
    inner = tiny.tokenizer()
    inner.enable_truncation(2)
    inner.enable_padding(length=9)
    inner.save(str(model[0] / "tokenizer.json"))
    assert load_tokenizer(*model).encode("a b c d") == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "prompt: is empty"),
        ("   ", "prompt: is empty"),
        ("a\ud800", "surrogate at character 1"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(model, text, message):
    with pytest.raises(PromptError, match=message):
        load_tokenizer(*model).encode(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged"),
        (b"not JSON", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"model": 3}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git-LFS pointer"),
    ],
)
def test_a_damaged_tokenizer_is_one_line_with_its_path(model, content, message):
    path, config = model
    (path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message) as caught:
        load_tokenizer(path, config)
    assert str(path / "tokenizer.json") in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_tokenizer_is_named_with_what_to_do(model):
    path, config = model
    (path / "tokenizer.json").rename(path / "vocab.json")
    with pytest.raises(TokenizerError, match="tokenizer.json: no such file; save it with a fast"):
        load_tokenizer(path, config)


def test_a_slow_tokenizer_is_reported_with_the_call_that_converts_it(model):
    path, config = model
    (path / "tokenizer.json").rename(path / "tokenizer.model")
    call = f"AutoTokenizer.from_pretrained('{path}').save_pretrained('{path}')"
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path, config)
    assert call in str(caught.value)


def test_an_unreadable_file_is_reported(model, monkeypatch):
    path, config = model
    file = path / "tokenizer.json"
    file.unlink()
    for make, message in (
        (lambda: file.mkdir(), "cannot be read: Is a directory"),
        (lambda: os.mkfifo(file), "is not a file; expected a file, found a named pipe"),
        (lambda: file.symlink_to("gone"), "is a link to gone, which does not exist"),
    ):
        make()
        with pytest.raises(TokenizerError, match=message):
            load_tokenizer(path, config)
        file.rmdir() if file.is_dir() else file.unlink()
    file.write_text("{}")
    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(TokenizerError, match="cannot be read: Permission denied"):
        load_tokenizer(path, config)


def refuse(path, *_):
    """Fail as the system does without the right to read."""
    raise PermissionError(13, "Permission denied", path)


def test_a_byte_order_mark_is_no_part_of_a_file(model, tmp_path):
    path, config = model
    for file in (path / "tokenizer.json", tmp_path / "text"):
        content = file.read_bytes() if file.exists() else b"a"
        file.write_bytes(b"\xef\xbb\xbf" + content)
    assert load_tokenizer(path, config).encode(read_text(tmp_path / "text")) == [3]


def test_a_tokenizer_larger_than_the_embedding_is_refused(model):
    path, config = model
    file = path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"]["zz"] = 48
    file.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="below the embedding's 48 rows, found 48"):
        load_tokenizer(path, config)


def with_added(model, tiny, *added, **changes):
    """The model with these special tokens after its 30 tokens; `changes`: keys of the last."""
    path, config = model
    inner = tiny.tokenizer()
    inner.add_special_tokens(list(added))
    values = json.loads(inner.to_str())
    values["added_tokens"][-1] |= changes
    (path / "tokenizer.json").write_text(json.dumps(values))
    return load_tokenizer(path, config)


def test_an_added_token_beyond_the_embedding_is_refused_only_in_a_text(model, tiny, caplog):
    tokenizer = with_added(model, tiny, *(f"<{i}>" for i in range(30, 50)))
    assert tokenizer.encode("a <47>") == [3, 47]
    with pytest.raises(PromptError, match="token '<48>': has no row .* below 48, found 48"):
        tokenizer.encode("a <48>")
    (line,) = (record.message for record in caplog.records)
    assert "without a row in the embedding: 2, the first '<48>' (id 48, rows 48)" in line


def test_a_template_beyond_the_embedding_is_refused(model, tiny):
    inner = tiny.tokenizer()
    inner.post_processor = processors.TemplateProcessing("<b> $A", None, [("<b>", 2**31)])
    inner.save(str(model[0] / "tokenizer.json"))
    with pytest.raises(PromptError, match="token of the template: .* below 48, found 2147483648"):
        load_tokenizer(*model).encode("a")


@pytest.mark.parametrize("stated", [33, 10**9])
def test_an_added_token_out_of_order_is_refused_only_in_a_text(model, tiny, caplog, stated):
    tokenizer = with_added(model, tiny, "<x>", id=stated)
    assert tokenizer.encode("a b") == [3, 4]
    with pytest.raises(PromptError, match=f"'<x>': is out of order; expected id {stated}"):
        tokenizer.encode("a <x>")
    assert f"order: 1, the first '<x>' with id {stated}, by its order 30;" in caplog.text


def test_a_tokenizer_that_cannot_encode_is_one_line(model):
    path, config = model
    file = path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["unk_token"] = "[UNK]"
    file.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match=r"json: cannot encode the text: .*Missing \[UNK\]"):
        load_tokenizer(path, config).encode("a é")


def test_a_panic_while_loading_is_one_line_and_its_page_is_not_printed(model, capfd):
    path, config = model
    file = path / "tokenizer.json"
    values = json.loads(file.read_text())
    values["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    file.write_text(json.dumps(values))
    with pytest.raises(TokenizerError, match="is damaged: Precompiled"):
        load_tokenizer(path, config)
    os.write(2, b"still open")
    assert capfd.readouterr().err == "still open"


class PanicException(BaseException):
    """An exception with the name of pyo3's class, by which it is recognized."""


def test_a_panic_while_encoding_is_one_line_and_its_page_is_not_printed(model, capfd):
    class Broken:
        def encode(self, text, **_):
            os.write(2, b"a page of Rust")
            raise PanicException("why")

    tokenizer = load_tokenizer(*model)
    tokenizer.inner = Broken()
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: cannot encode the text: why"):
        tokenizer.encode("a")
    os.write(2, b"still open")
    assert capfd.readouterr().err == "still open"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (PanicException, TokenizerError),
        (OverflowError, TokenizerError),
        (KeyboardInterrupt, KeyboardInterrupt),
        (SystemExit, SystemExit),
        (MemoryError, MemoryError),
    ],
)
def test_errors_while_decoding_are_typed_and_an_interrupt_stays_one(model, raised, expected):
    class Broken:
        def decode(self, *_, **__):
            raise raised("why")

    tokenizer = load_tokenizer(*model)
    tokenizer.inner = Broken()
    for call in (lambda: tokenizer.decode([3]), lambda: tokenizer.stream([3]).push(4)):
        with pytest.raises(expected, match="why"):
            call()


def test_padding_rows_beyond_the_tokenizer_are_fine(model):
    assert load_tokenizer(*model).inner.get_vocab_size() < model[1].vocab_size


def test_read_text_names_the_first_bad_byte(tmp_path):
    file = tmp_path / "text"
    file.write_bytes(b"ab\xff")
    with pytest.raises(PromptError, match="text: is not text; expected UTF-8, found byte 2"):
        read_text(file)
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        read_text(tmp_path / "none")
    file.write_bytes("a\r\né\0".encode())
    assert read_text(file) == "a\né\0"


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=40))
def test_bytes_that_are_no_text_come_out_as_the_whole_would_decode(content):
    inner = byte_level()
    letters = {byte: letter for letter, byte in zip(*byte_letters(), strict=True)}
    ids = [inner.token_to_id(letters[byte]) for byte in content]
    assert "".join(pieces(inner, inner.encode("x").ids, ids)) == inner.decode(ids)


def byte_letters():
    """The letters of byte-level BPE, and the bytes that they stand for."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return letters, plain + others


def test_a_run_of_bytes_that_are_no_character_is_held_back_no_longer_than_one():
    inner = byte_level()
    invalid = inner.token_to_id("ÿ")
    decoded = []

    class Counted:
        def decode(self, ids, **words):
            decoded.append(len(ids))
            return inner.decode(ids, **words)

    stream = TextStream(Counted(), inner.encode("x").ids)
    shown = "".join(stream.push(invalid) for _ in range(500))
    assert shown == "\ufffd" * 497 and stream.finish() == "\ufffd" * 3
    assert max(decoded) <= 12  # of 500 tokens


def test_special_tokens_are_added_and_parsed_unless_said_otherwise(model):
    path, config = model
    end = {"id": 6, "content": "<end>", "special": True, "lstrip": False, "rstrip": False}
    end |= {"single_word": False, "normalized": False}
    values = json.loads((path / "tokenizer.json").read_text())
    number = len(values["model"]["vocab"])
    values["added_tokens"] = [*(values.get("added_tokens") or []), end | {"id": number}]
    (path / "tokenizer.json").write_text(json.dumps(values))
    tokenizer = load_tokenizer(path, config)
    number = tokenizer.inner.token_to_id("<end>")
    assert number in tokenizer.encode("a<end>")
    assert number not in tokenizer.encode("a<end>", parse_special_tokens=False)
    assert number in tokenizer.encode("a<end>")  # the other was a copy
