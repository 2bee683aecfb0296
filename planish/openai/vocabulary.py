"""The bytes of single tokens, and how the protocol writes them as text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from planish.reference.text.tokenizer import Tokenizer

BYTE = re.compile("<0x([0-9A-F]{2})>")  # a byte in SentencePiece's vocabularies
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space there


class Vocabulary:
    """Token id -> bytes, as far as the kind of tokenizer tells them."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    @cached_property
    def added(self) -> dict[int, str]:
        """Id -> text of special and other added tokens."""
        return self.tokenizer.added_tokens()

    @cached_property
    def special(self) -> frozenset[int]:
        """The ids that texts are shown without."""
        added, moved = self.tokenizer.inner.get_added_tokens_decoder(), self.tokenizer.moved
        return frozenset(moved.get(i, i) for i, token in added.items() if token.special)

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token, or its bytes."""
        return max(map(len, self.tokenizer.inner.get_vocab(with_added_tokens=True)), default=1)

    @cached_property
    def _decoders(self) -> frozenset[str]:
        """The types of the tokenizer's decoders."""
        return frozenset(decoder_types(json.loads(self.tokenizer.inner.to_str())["decoder"]))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of a token, of special ones those of their text; a part of a character, too."""
        if token in self.added:
            return self.added[token].encode()
        piece = self.tokenizer.inner.id_to_token(token)
        if piece is None:  # a row of the embedding that no text uses
            return b""
        if "ByteLevel" in self._decoders:
            return bytes(LETTERS[c] for c in piece if c in LETTERS)
        if "ByteFallback" in self._decoders and (byte := BYTE.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if self._decoders & {"Metaspace", "Replace"}:
            return piece.replace(SPACE, " ").encode()
        return self.tokenizer.decode([token]).encode()

    def text_of(self, token: int) -> str:
        """A token's text; of one that is a part of a character its bytes, as OpenAI writes them."""
        return show_bytes(self.bytes_of(token))


def show_bytes(raw: bytes) -> str:
    """UTF-8 as text, other bytes as bytes:\\xf0\\x9f."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def decoder_types(decoder: Any) -> Iterator[str]:
    """The type of a decoder of tokenizer.json, or of each of a sequence."""
    if isinstance(decoder, dict):
        yield decoder["type"]
        for one in decoder.get("decoders", ()):
            yield from decoder_types(one)


def byte_letters() -> dict[str, int]:
    """The letter by which byte-level vocabularies write each byte -> the byte.

    Printable bytes are their own letters, the others those from U+0100 on.
    Source: bytes_to_unicode of https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


LETTERS = byte_letters()
