"""Text to token ids and back, by the `tokenizers` library, with our errors around it."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers

from planish.reference.errors import PromptError, TokenizerError, notice
from planish.reference.model.config import ModelConfig
from planish.reference.text.added_tokens import add_missing_tokens
from planish.reference.text.tokenizer_file import (
    library_errors,
    panics_unprinted,
    read_tokenizer_file,
)

CONTEXT = 8  # settled pieces that are decoded again with each new one
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to


class Tokenizer:
    """A model directory's tokenizer, checked against the model's vocabulary.

    `moved`: ids that the library gave to added tokens -> the ids that tokenizer.json states. The
    model knows such a token by the second, so a text with one of them is refused.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        config: ModelConfig,
        path: Path,
        moved: Mapping[int, int] | None = None,
    ):
        self.inner, self.config, self.path = inner, config, path
        self.moved = moved or {}

    def encode(self, text: str) -> list[int]:
        """Token ids with the template's special tokens.

        Raises PromptError for what is not text and for a token that the embedding has no row for,
        TokenizerError where the library cannot encode.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            found = f"a lone surrogate at character {problem.start}"
            raise PromptError(
                "is not text", name="prompt", expected="Unicode", found=found
            ) from None
        with library_errors(self.path, "cannot encode the text"), panics_unprinted():
            ids = self.inner.encode(text).ids
        if not ids:
            raise PromptError("is empty", name="prompt", expected="at least one token")
        self._check_rows(ids)
        return ids

    def _check_rows(self, ids: Sequence[int]) -> None:
        """Refuse an id without a row in the embedding, or not the one that tokenizer.json states.

        It comes from the text, or from the template that puts tokens around every text.
        """
        rows = self.config.vocab_size
        wrong = next((i for i in ids if i >= rows or i in self.moved), None)
        if wrong is None:
            return
        text = self.added_tokens().get(self.moved.get(wrong, wrong))
        name = "a token of the template" if text is None else f"token {text!r}"
        problem, expected = "has no row in the embedding", f"an id below {rows}"
        if wrong in self.moved:
            problem, expected = "is out of its place", f"id {self.moved[wrong]} of its entry"
        raise PromptError(problem, path=self.path, name=name, expected=expected, found=wrong)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; TokenizerError where the library cannot."""
        with library_errors(self.path, "cannot decode"):
            return self.inner.decode(list(ids), skip_special_tokens=True)

    def added_tokens(self) -> dict[int, str]:
        """The model's id -> the text of special and other added tokens."""
        added = self.inner.get_added_tokens_decoder().items()
        return {self.moved.get(i, i): token.content for i, token in added}

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """A detokenizer for the tokens that follow a prompt."""
        return TextStream(self.inner, prompt, self.path)


class TextStream:
    """Turns tokens into text one by one: a piece comes out when it can no longer change.

    A character split over tokens is held back until it is whole, and the first new word keeps
    the space that separates it from the prompt: each piece is what the decoded text grows by,
    behind a context of the last few pieces. (The library's own DecodeStream raises an error
    where a run of byte tokens turns out to be no character, which a model may well produce.)
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, prompt: Sequence[int], path: Path | None = None
    ):
        self.inner, self.ids, self.path = inner, list(prompt), path
        self.bounds = deque([0, len(self.ids)], maxlen=CONTEXT)  # where settled pieces end

    def push(self, token: int) -> str:
        """The text that is settled by one more token; may be empty."""
        self.ids.append(token)
        piece = self.finish()
        if piece.endswith(REPLACEMENT):
            return ""
        self.bounds.append(len(self.ids))
        return piece

    def finish(self) -> str:
        """What is held back: the pieces of a character that is not whole."""
        start, settled = self.bounds[0], self.bounds[-1]
        with library_errors(self.path, "cannot decode"):
            before = self.inner.decode(self.ids[start:settled], skip_special_tokens=True)
            return self.inner.decode(self.ids[start:], skip_special_tokens=True)[len(before) :]

    def settle(self) -> str:
        """What is held back, which no later token completes any more."""
        piece = self.finish()
        if piece:
            self.bounds.append(len(self.ids))
        return piece


def load_tokenizer(path: str | Path, config: ModelConfig) -> Tokenizer:
    """Read tokenizer.json and the tokens that the files beside it add.

    TokenizerError if it is missing, damaged, or made for a larger vocabulary. Added tokens may
    lie beyond the embedding, as where a [PAD] was added that no text contains: with a notice.
    """
    file = Path(path) / "tokenizer.json"
    content = read_tokenizer_file(file)
    with library_errors(file, "is damaged"), panics_unprinted():
        inner = tokenizers.Tokenizer.from_buffer(content)
        moved = _moved_ids(inner, content)
        add_missing_tokens(inner, file.parent)
        inner.no_truncation()
        inner.no_padding()
        _check_fits(inner, config, file)
    tokenizer = Tokenizer(inner, config, file, moved)
    if moved:
        given, stated = next(iter(moved.items()))
        first = f"{tokenizer.added_tokens()[stated]!r} with id {stated}, by its place {given}"
        notice(
            f"{file}: added tokens out of their place: {len(moved)}, the first {first}; a text"
            " with one of them is refused"
        )
    return tokenizer


def _check_fits(inner: tokenizers.Tokenizer, config: ModelConfig, file: Path) -> None:
    """Ordinary tokens, which any text may contain, must have a row in the embedding."""
    vocabulary, rows = inner.get_vocab(with_added_tokens=True), config.vocab_size
    largest = max(vocabulary.values(), default=-1)
    if largest < rows:
        return
    beyond = sorted(number for number in vocabulary.values() if number >= rows)
    added = inner.get_added_tokens_decoder()
    if any(number not in added for number in beyond):
        expected = f"ids below the embedding's {rows} rows"
        raise TokenizerError("does not fit the model", path=file, expected=expected, found=largest)
    first = added[beyond[0]].content
    notice(
        f"{file}: added tokens without a row in the embedding: {len(beyond)}, the first {first!r}"
        f" (id {beyond[0]}, rows {rows}); a text with one of them is refused"
    )


def _moved_ids(inner: tokenizers.Tokenizer, content: bytes) -> dict[int, int]:
    """The id of each added token that the library read under another -> the id in the file.

    The library numbers them through and keeps quiet about it.
    """
    start = re.search(rb'"added_tokens"\s*:\s*(?=\[)', content)
    if start is None:
        return {}
    listed = json.JSONDecoder().raw_decode(content[start.end() :].decode("utf-8"))[0]
    pairs = [(inner.token_to_id(token["content"]), token["id"]) for token in listed]
    right = {given for given, stated in pairs if given == stated}
    return {g: stated for g, stated in pairs if g is not None and g not in right}


def read_text(path: str | Path) -> str:
    """A UTF-8 text file; raises PromptError otherwise.

    Line ends become newlines, as in Python's text mode: perplexities elsewhere are taken so. A
    byte order mark at the head is no part of the text.
    """
    try:
        return Path(path).read_text(encoding="utf-8").removeprefix("\ufeff")
    except OSError as problem:
        raise PromptError(f"cannot be read: {problem.strerror}", path=path) from None
    except UnicodeDecodeError as problem:
        raise PromptError(
            "is not text", path=path, expected="UTF-8", found=f"byte {problem.start}"
        ) from None
