"""The prompt of a completion, which echo puts before the text, with its tokens' places in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planish.openai.choice import Entry, Recorder, place_tokens
from planish.openai.served import Served
from planish.reference.text.requests import TokenScore


@dataclass(frozen=True, kw_only=True)
class Echo:
    """A prompt as text, and its tokens."""

    text: str = ""
    tokens: tuple[Entry, ...] = ()

    def entries(self, scores: Sequence[TokenScore | None]) -> list[Entry]:
        """The tokens with their scores; without scores none."""
        pairs = zip(self.tokens, scores, strict=False)
        return [replace(token, score=score) for token, score in pairs]


def echo_ids(served: Served, ids: Sequence[int], skip_special: bool) -> Echo:
    """The echo of a prompt that was given as ids."""
    recorder = Recorder(served.vocabulary, (), skip_special)
    for token in ids:
        recorder.push(token)
    entries, place = list[Entry](), 0
    pieces = list[str]()
    for group, piece in recorder.take_last():
        entries += place_tokens(recorder, group, piece, place)
        pieces.append(piece)
        place += len(piece)
    return Echo(text="".join(pieces), tokens=tuple(entries))


def echo_text(served: Served, ids: Sequence[int], text: str, special: bool) -> Echo:
    """A text as it was given, with the places that the tokenizer found its tokens at."""
    found = served.tokenizer.inner.encode(text, add_special_tokens=special).offsets
    entries = [
        Entry(token=token, raw=b"", start=start, end=end)
        for token, (start, end) in zip(ids, found, strict=True)
    ]
    return Echo(text=text, tokens=tuple(entries))
