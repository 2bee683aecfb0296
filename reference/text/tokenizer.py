"""Text to token ids and back: the `tokenizers` library, with typed errors."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from planish.reference.errors import PromptError, TokenizerError, notice
from planish.reference.gguf import find_gguf
from planish.reference.model.config import ModelConfig
from planish.reference.reading import read_file
from planish.reference.text.added_tokens import add_missing_tokens
from planish.reference.text.gguf_tokenizer import gguf_tokenizer
from planish.reference.text.tokenizer_file import (
    hide_panics,
    library_errors,
    read_tokenizer_file,
)

CONTEXT = 8  # settled pieces that are decoded again with each new token
LONGEST = 4  # bytes of a character, and so the most tokens that it is split over
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to


class Tokenizer:
    """A model directory's tokenizer, checked against the model's vocabulary.

    `moved`: the library's id of an added token -> its id in tokenizer.json, where they differ. The
    model was trained on the latter, so a text with such a token is refused.
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

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special_tokens: bool = True
    ) -> list[int]:
        """Token ids of a text.

        add_special_tokens: with those that the tokenizer's own template puts around every text; a
        rendered chat template has them already. parse_special_tokens: <|im_end|> in the text is
        that token, not its letters. Raises PromptError if the text is not Unicode or a token has
        no row in the embedding, and TokenizerError if the library cannot encode it.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            found = f"a lone surrogate at character {problem.start}"
            raise PromptError(
                "is not text", name="prompt", expected="Unicode", found=found
            ) from None
        with library_errors(self.path, "cannot encode the text"), hide_panics():
            inner = self.inner if parse_special_tokens else self._blind
            ids = inner.encode(text, add_special_tokens=add_special_tokens).ids
        if not ids:
            raise PromptError("is empty", name="prompt", expected="at least one token")
        self._check_rows(ids)
        return ids

    @cached_property
    def _blind(self) -> tokenizers.Tokenizer:
        """A copy that reads special tokens as text: a switch, which other threads must not see."""
        copied = tokenizers.Tokenizer.from_str(self.inner.to_str())
        copied.encode_special_tokens = True
        return copied

    def _check_rows(self, ids: Sequence[int]) -> None:
        """Refuse an id that has no row in the embedding or differs from that in tokenizer.json.

        It may come from the text or from the template, which adds tokens to every text.
        """
        rows = self.config.vocab_size
        wrong = next((i for i in ids if i >= rows or i in self.moved), None)
        if wrong is None:
            return
        text = self.added_tokens().get(self.moved.get(wrong, wrong))
        name = "a token of the template" if text is None else f"token {text!r}"
        problem, expected = "has no row in the embedding", f"an id below {rows}"
        if wrong in self.moved:
            problem, expected = "is out of order", f"id {self.moved[wrong]} of its entry"
        raise PromptError(problem, path=self.path, name=name, expected=expected, found=wrong)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens; TokenizerError if the library cannot decode."""
        with library_errors(self.path, "cannot decode"):
            return self.inner.decode(list(ids), skip_special_tokens=True)

    def text_of(self, token: int) -> str:
        """The text of one token; that of a special token is its name."""
        name = self._names.get(token)
        return self.decode([token]) if name is None else name

    @cached_property
    def _names(self) -> dict[int, str]:
        return self.added_tokens()

    def added_tokens(self) -> dict[int, str]:
        """Id, as the model knows it, -> text of special and other added tokens."""
        added = self.inner.get_added_tokens_decoder().items()
        return {self.moved.get(i, i): token.content for i, token in added}

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """A detokenizer for the tokens that follow a prompt."""
        return TextStream(self.inner, prompt, self.path)


class TextStream:
    """Turn tokens into text one by one; a piece is returned once it can no longer change.

    A character that is split over tokens is held back until it is complete, and the first new word
    keeps the space that separates it from the prompt: each piece is what one more token adds to
    the decoded text of the last few pieces. Of bytes that are no character at most three tokens are
    held back, as a fourth would complete any character: so a token takes the same time however
    many of them there are. (The library's DecodeStream raises an error if a run
    of byte tokens is not a character, and models do produce such runs.)
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        prompt: Sequence[int],
        path: Path | None = None,
        skip_special: bool = True,
    ):
        """skip_special: leave special tokens out of the text."""
        self.inner, self.ids, self.path = inner, list(prompt), path
        self.skip_special = skip_special
        self.bounds = deque([0, len(self.ids)], maxlen=CONTEXT)  # where settled pieces end

    def push(self, token: int) -> str:
        """The text that one more token settles; may be empty."""
        self.ids.append(token)
        piece, end = self.finish(), len(self.ids)
        if piece.endswith(REPLACEMENT):
            if end - self.bounds[-1] < LONGEST:
                return ""
            end -= LONGEST - 1
            piece = self._text_to(end)
        self.bounds.append(end)
        return piece

    def finish(self) -> str:
        """The text held back: the bytes of an incomplete character."""
        return self._text_to(len(self.ids))

    def _text_to(self, end: int) -> str:
        """The text of the tokens from the settled ones to `end`."""
        start, settled = self.bounds[0], self.bounds[-1]
        with library_errors(self.path, "cannot decode"):
            before, whole = (
                self.inner.decode(self.ids[start:last], skip_special_tokens=self.skip_special)
                for last in (settled, end)
            )
            return whole[len(before) :]

    def settle(self) -> str:
        """The text held back, which no later token will complete."""
        piece = self.finish()
        if piece:
            self.bounds.append(len(self.ids))
        return piece


def load_tokenizer(path: str | Path, config: ModelConfig) -> Tokenizer:
    """Read tokenizer.json and the tokens that the files beside it add; or those of a GGUF file.

    Raises TokenizerError if it is missing, damaged, or made for a larger vocabulary. Added tokens
    may exceed the embedding (a [PAD], say, that no text contains); that gives a notice.
    """
    file = Path(path) / "tokenizer.json"
    gguf = None if file.exists() else find_gguf(Path(path))
    if gguf is not None:
        file = gguf
    content = read_tokenizer_file(file) if gguf is None else gguf_tokenizer(gguf)
    with library_errors(file, "is damaged"), hide_panics():
        inner = tokenizers.Tokenizer.from_buffer(content)
        moved = _moved_ids(inner, content)
        add_missing_tokens(inner, file.parent)
        inner.no_truncation()
        inner.no_padding()
        _check_fits(inner, config, file)
    tokenizer = Tokenizer(inner, config, file, moved)
    if moved:
        given, stated = next(iter(moved.items()))
        first = f"{tokenizer.added_tokens()[stated]!r} with id {stated}, by its order {given}"
        notice(
            f"{file}: added tokens out of order: {len(moved)}, the first {first}; a text"
            " with one of them is refused"
        )
    return tokenizer


def _check_fits(inner: tokenizers.Tokenizer, config: ModelConfig, file: Path) -> None:
    """Check that ordinary tokens, which any text may contain, have rows in the embedding."""
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
    """The library's id of an added token -> its id in the file, where they differ.

    The library renumbers added tokens without a warning.
    """
    start = re.search(rb'"added_tokens"\s*:\s*(?=\[)', content)
    if start is None:
        return {}
    listed = json.JSONDecoder().raw_decode(content[start.end() :].decode("utf-8"))[0]
    pairs = [(inner.token_to_id(token["content"]), token["id"]) for token in listed]
    right = {given for given, stated in pairs if given == stated}
    return {g: stated for g, stated in pairs if g is not None and g not in right}


def read_text(path: str | Path) -> str:
    """A UTF-8 text file of at most 256 MiB; raises PromptError otherwise.

    Line ends become newlines, as in Python's text mode, with which others measure perplexity. A
    byte order mark at the beginning is skipped.
    """
    try:
        text = read_file(Path(path), PromptError).decode("utf-8")
    except OSError as problem:
        raise PromptError(f"cannot be read: {problem.strerror}", path=path) from None
    except UnicodeDecodeError as problem:
        raise PromptError(
            "is not text", path=path, expected="UTF-8", found=f"byte {problem.start}"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
