"""Text to token ids and back, by the `tokenizers` library, with our errors around it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from reference.config import ModelConfig
from reference.errors import PromptError, TokenizerError

CONTEXT = 8  # settled pieces that are decoded again with each new one
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what an incomplete character decodes to


class Tokenizer:
    """A model directory's tokenizer.json, checked against the model's vocabulary."""

    def __init__(self, inner: tokenizers.Tokenizer, config: ModelConfig, path: Path):
        self.inner, self.config, self.path = inner, config, path

    def encode(self, text: str) -> list[int]:
        """Token ids with the template's special tokens; PromptError for what is not text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as problem:
            found = f"a lone surrogate at character {problem.start}"
            raise PromptError(
                "is not text", name="prompt", expected="Unicode", found=found
            ) from None
        ids = self.inner.encode(text).ids
        if not ids:
            raise PromptError("is empty", name="prompt", expected="at least one token")
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out."""
        return self.inner.decode(list(ids), skip_special_tokens=True)

    def stream(self, prompt: Sequence[int]) -> TextStream:
        """A detokenizer for the tokens that follow a prompt."""
        return TextStream(self.inner, prompt)


class TextStream:
    """Turns tokens into text one by one: a piece comes out when it can no longer change.

    A character split over tokens is held back until it is whole, and the first new word keeps
    the space that separates it from the prompt: each piece is what the decoded text grows by,
    behind a context of the last few pieces. (The library's own DecodeStream raises an error
    where a run of byte tokens turns out to be no character, which a model may well produce.)
    """

    def __init__(self, inner: tokenizers.Tokenizer, prompt: Sequence[int]):
        self.inner, self.ids = inner, list(prompt)
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
        before = self.inner.decode(self.ids[start:settled], skip_special_tokens=True)
        return self.inner.decode(self.ids[start:], skip_special_tokens=True)[len(before) :]


def load_tokenizer(path: str | Path, config: ModelConfig) -> Tokenizer:
    """Read tokenizer.json; TokenizerError if missing, damaged or larger than the embedding."""
    file = Path(path) / "tokenizer.json"
    inner = _read_tokenizer(file)
    largest = max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= config.vocab_size:
        expected = f"ids below the embedding's {config.vocab_size} rows"
        raise TokenizerError("does not fit the model", path=file, expected=expected, found=largest)
    inner.no_truncation()
    inner.no_padding()
    return Tokenizer(inner, config, file)


def _read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    if not file.is_file():
        slow = (file.parent / "vocab.json").exists()
        hint = "; save it with a fast tokenizer of transformers" if slow else ""
        raise TokenizerError(f"no such file{hint}", path=file)
    try:
        with open(file, "rb") as stream:
            if stream.read(23).startswith(b"version https://git-lfs"):
                raise TokenizerError("is a Git-LFS pointer; run `git lfs pull`", path=file)
        return tokenizers.Tokenizer.from_file(str(file))
    except TokenizerError:
        raise
    except Exception as problem:  # the library raises the bare class
        raise TokenizerError(f"is damaged: {problem}", path=file) from None


def read_text(path: str | Path) -> str:
    """A UTF-8 text file; raises PromptError otherwise.

    Line ends become newlines, as in Python's text mode: perplexities elsewhere are taken so.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as problem:
        raise PromptError(f"cannot be read: {problem.strerror}", path=path) from None
    except UnicodeDecodeError as problem:
        raise PromptError(
            "is not text", path=path, expected="UTF-8", found=f"byte {problem.start}"
        ) from None
