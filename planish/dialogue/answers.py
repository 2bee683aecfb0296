"""The model's next message, as it grows, and Ctrl-C, which ends it and keeps what came."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from planish.reference.errors import PlanishError
from planish.reference.model.config import ModelConfig
from planish.reference.text.chat import Conversation, Message, encode_chat
from planish.reference.text.chat_template import ChatTemplate
from planish.reference.text.generate import Stop, StopStrings, text_stream
from planish.reference.text.requests import Event, Request, Session
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """What answers: a model, its template, and a session that keeps what it has read.

    context: positions of the conversation and the answer. variables: more that the template reads.
    """

    session: Session
    tokenizer: Tokenizer
    template: ChatTemplate
    config: ModelConfig
    context: int
    variables: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation, from its beginning: only the whole has the right tokens."""
        conversation = Conversation(messages=messages, variables=self.variables)
        return encode_chat(self.tokenizer, self.template, conversation)


@dataclass(kw_only=True)
class Answer:
    """One answer. finish: "stop", "length" or "cancelled"; cached: tokens of the prompt that were
    known; seconds: from the first of its tokens to the last."""

    prompt: list[int]
    sampling: Sampling
    tokens: int = 0
    first: int = 0  # tokens that came first, with which the clock begins
    text: str = ""
    finish: str = ""
    cached: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float | None:
        """Tokens a second after the first; None for too few."""
        later = self.tokens - self.first
        return later / self.seconds if later > 0 and self.seconds > 0 else None


class CtrlC:
    """Whether Ctrl-C was pressed: once ends an answer, twice raises KeyboardInterrupt."""

    pressed = False

    def press(self, _number: int, _frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True


@contextlib.contextmanager
def ctrl_c_noted() -> Iterator[CtrlC]:
    """Note the first Ctrl-C instead of raising it; an ignored signal stays ignored."""
    noted, before = CtrlC(), signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or before == signal.SIG_IGN:
        yield noted
        return
    signal.signal(signal.SIGINT, noted.press)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


class Answering:
    """An answer in the making; iterate over it for its pieces of text."""

    def __init__(self, speaker: Speaker, request: Request, strings: tuple[str, ...], noted: CtrlC):
        self.speaker, self.request, self.noted = speaker, request, noted
        stop = Stop(request.max_new_tokens, strings)
        self.stream: StopStrings = text_stream(speaker.tokenizer, request.prompt, stop)
        self.answer = Answer(prompt=list(request.prompt), sampling=request.sampling)
        self.cancelled = False
        self.start = 0.0

    def __iter__(self) -> Iterator[str]:
        """Pieces of text. PlanishError if the session fails."""
        handle = self.speaker.session.submit(self.request)
        try:
            while not self.answer.finish:
                if self.noted.pressed:
                    self._cancel(handle)
                for event in self.speaker.session.step():
                    yield from self._pieces(event, handle)
        finally:
            self._let_go(handle)
        yield from self._show(self.stream.finish())

    def _pieces(self, event: Event, handle: int) -> Iterator[str]:
        """The text of an event."""
        if event.finish == "error":
            self.answer.finish = "error"
            raise PlanishError(event.error)
        self._count(event)
        for token in event.tokens:
            if not self.stream.stopped:
                yield from self._show(self.stream.push(token))
        if self.stream.stopped:
            self.answer.finish = "stop"
            if event.finish is None:
                self._cancel(handle)
        else:
            self.answer.finish = event.finish or ""

    def _count(self, event: Event) -> None:
        now = time.perf_counter()
        self.answer.cached = self.answer.cached or event.cached
        if not event.tokens:
            return
        if not self.answer.tokens:
            self.start, self.answer.first = now, len(event.tokens)
        self.answer.tokens += len(event.tokens)
        self.answer.seconds = now - self.start

    def _show(self, piece: str) -> Iterator[str]:
        if piece:
            self.answer.text += piece
            yield piece

    def _cancel(self, handle: int) -> None:
        if not self.cancelled:
            self.cancelled = True
            self.speaker.session.cancel(handle)

    def _let_go(self, handle: int) -> None:
        """Leave the session idle after an error, too, so that the next answer can begin.

        Not after a second Ctrl-C, which may have come in the middle of a step.
        """
        if self.speaker.session.is_idle or isinstance(sys.exception(), KeyboardInterrupt):
            return
        self._cancel(handle)
        while not self.speaker.session.is_idle:
            self.speaker.session.step()
