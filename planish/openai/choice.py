"""One continuation as it grows: tokens become text, up to a stop string, and scored tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planish.openai.served import Served
from planish.openai.vocabulary import Vocabulary
from planish.reference.text.generate import StopStrings
from planish.reference.text.requests import Event, Request, TokenScore
from planish.reference.text.tokenizer import TextStream

Group = tuple[list[int], str]  # tokens and the text of all of them


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A token beside its text: characters start..end of the choice, and these bytes of it.

    raw is empty for special tokens that the text is shown without; score None for the first token
    of a prompt.
    """

    token: int
    raw: bytes
    start: int
    end: int
    score: TokenScore | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one event adds to a choice."""

    text: str = ""
    entries: tuple[Entry, ...] = ()
    finish: str | None = None


class Recorder(TextStream):
    """A detokenizer that knows which tokens each piece of its text is of."""

    def __init__(self, vocabulary: Vocabulary, prompt: Sequence[int], skip_special: bool = True):
        tokenizer = vocabulary.tokenizer
        super().__init__(tokenizer.inner, prompt, tokenizer.path, skip_special)
        self.vocabulary, self.special = vocabulary, vocabulary.special
        self.groups: list[Group] = []  # what was settled and not yet taken
        self.end = len(self.ids)  # of the settled tokens

    def push(self, token: int) -> str:
        return self._note(super().push(token))

    def settle(self) -> str:
        return self._note(super().settle())

    def _note(self, piece: str) -> str:
        settled = self.bounds[-1]
        if settled > self.end:
            self.groups.append((self.ids[self.end : settled], piece))
            self.end = settled
        return piece

    def take(self) -> list[Group]:
        """Tokens and their text, since the last call."""
        groups, self.groups = self.groups, []
        return groups

    def take_last(self) -> list[Group]:
        """The same at the end of the text: with what can no longer change."""
        rest = self.ids[self.end :]
        return [*self.take(), *([(rest, self.finish())] if rest else [])]


@dataclass(kw_only=True)
class Entries:
    """The scored tokens of a text, released with the text that they belong to."""

    recorder: Recorder
    placed: int = 0  # characters of the text that belong to a token
    shown: int = 0  # characters of it that were released
    held: list[Entry] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)  # of tokens without a place

    def place(self, groups: Sequence[Group]) -> None:
        """Give tokens and their text their places."""
        for ids, text in groups:
            entries = place_tokens(self.recorder, ids, text, self.placed)
            scores, self.scores = self.scores[: len(ids)], self.scores[len(ids) :]
            pairs = zip(entries, scores, strict=True)
            self.held += [replace(entry, score=score) for entry, score in pairs]
            self.placed += len(text)

    def release(self, text: str) -> list[Entry]:
        """The tokens whose text is released with this much more of it."""
        self.shown += len(text)
        count = next((i for i, e in enumerate(self.held) if e.end > self.shown), len(self.held))
        ready, self.held = self.held[:count], self.held[count:]
        return ready

    def cut(self) -> list[Entry]:
        """The token that a stop string begins within, as far as it is shown."""
        if not self.held or self.held[0].start >= self.shown:
            return []
        first, size = self.held[0], self.shown - self.held[0].start
        raw = first.raw.decode(errors="replace")[:size].encode()
        return [replace(first, raw=raw, end=self.shown)]


def place_tokens(recorder: Recorder, ids: Sequence[int], text: str, start: int = 0) -> list[Entry]:
    """Tokens that together are a text, each at its characters.

    Their bytes are the vocabulary's if these are the text's; a decoder that changes texts (which
    drops the space before the first word, say) gives them to the last token.
    """
    hidden = recorder.special if recorder.skip_special else ()
    raws = [b"" if i in hidden else recorder.vocabulary.bytes_of(i) for i in ids]
    if b"".join(raws).decode(errors="replace") != text:
        raws = [*[b""] * (len(ids) - 1), text.encode()]
    entries, before = list[Entry](), b""
    for token, raw in zip(ids, raws, strict=True):
        first = count_characters(before + raw[:1]) - (raw != b"")  # of raw
        before += raw
        end = start + count_characters(before)
        entries.append(Entry(token=token, raw=raw, start=start + first, end=end))
    return entries


def count_characters(raw: bytes) -> int:
    """How many characters bytes are; what is none, or not a whole one, counts as one."""
    return len(raw.decode(errors="replace"))


class Choice:
    """One continuation. Feed it the events of its request, in their order.

    tokens counts the computed ones, up to the stop string, with the one that ended the text, which
    is `ending`. started is for what streams it.
    """

    def __init__(self, stream: StopStrings, recorder: Recorder, entries: Entries | None):
        """entries: where scored tokens are collected, if they are wanted."""
        self.stream, self.recorder, self.entries = stream, recorder, entries
        self.tokens, self.cached, self.started = 0, 0, False
        self.accepted, self.rejected = 0, 0  # guesses of tokens
        self.text, self.listed = "", list[Entry]()
        self.prompt: tuple[TokenScore | None, ...] = ()
        self.ending: Entry | None = None
        self.finish: str | None = None
        self.failure = ""

    @property
    def is_done(self) -> bool:
        return self.finish is not None or self.failure != ""

    def feed(self, event: Event) -> Piece:
        """What an event adds; nothing once the text is complete."""
        if self.is_done:
            return Piece()
        self.cached = max(self.cached, event.cached)
        self.accepted += event.accepted
        self.rejected += event.rejected
        self.prompt = event.prompt or self.prompt
        pieces = [self._push(event, number) for number in range(len(event.tokens))]
        if event.end is not None and not self.stream.stopped:
            pieces.append(self._end(event, event.end))
        if event.finish in ("error", "cancelled"):
            self.failure = event.error or event.finish
        elif event.finish is not None or self.stream.stopped:
            pieces.append(self._finish())
            self.finish = "length" if self._is_cut_off(event) else "stop"
        return self._keep(pieces)

    def _is_cut_off(self, event: Event) -> bool:
        return event.finish == "length" and not self.stream.stopped

    def _push(self, event: Event, number: int) -> Piece:
        """One more token."""
        if self.stream.stopped:
            return Piece()
        self.tokens += 1
        if self.entries is not None:
            self.entries.scores.append(event.scores[number])
        return self._release(self.stream.push(event.tokens[number]), self.recorder.take())

    def _end(self, event: Event, token: int) -> Piece:
        """The token that ends the text; its own text may complete a stop string."""
        self.tokens += 1
        if self.entries is not None:
            score = event.scores[len(event.tokens)]
            self.ending = Entry(token=token, raw=b"", start=0, end=0, score=score)
        if token not in self.stream.named or token not in self.recorder.special:
            return Piece()
        self.recorder.skip_special = True  # no end is shown
        text = self.stream.push(token)
        return self._release(text, [one for one in self.recorder.take() if one[0] != [token]])

    def _finish(self) -> Piece:
        """What was held back, unless it is of a stop string."""
        if self.stream.stopped:
            return Piece()
        return self._release(self.stream.finish(), self.recorder.take_last())

    def _release(self, text: str, groups: Sequence[Group]) -> Piece:
        """A text that is safe to show, and the tokens of it, as tokens in groups were settled."""
        if self.entries is None:
            return Piece(text=text)
        self.entries.place(groups)
        entries = self.entries.release(text)
        if self.stream.stopped:
            entries += self.entries.cut()
        return Piece(text=text, entries=tuple(entries))

    def _keep(self, pieces: Sequence[Piece]) -> Piece:
        """All pieces as one, which the choice now has."""
        text = "".join(piece.text for piece in pieces)
        entries = tuple(entry for piece in pieces for entry in piece.entries)
        self.text += text
        self.listed += entries
        if self.ending is not None:  # it follows the text
            self.ending = replace(self.ending, start=len(self.text), end=len(self.text))
        return Piece(text=text, entries=entries, finish=self.finish)


def open_choice(
    served: Served, request: Request, stops: Sequence[str], skip_special: bool = True
) -> Choice:
    """The choice of a request, before its first event."""
    vocabulary = served.vocabulary
    recorder = Recorder(vocabulary, request.prompt, skip_special)
    stream = StopStrings(recorder, stops, vocabulary.added if stops else {})
    scored = request.logprobs is not None
    return Choice(stream, recorder, Entries(recorder=recorder) if scored else None)
