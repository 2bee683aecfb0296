"""From a message to its answer, and what is done when the context is full."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from planish.dialogue.answers import Answer, Answering, CtrlC, Speaker
from planish.dialogue.messages import Messages
from planish.dialogue.settings import Settings
from planish.reference.errors import PromptError
from planish.reference.text.requests import Request

LEAST_ANSWER = 32  # tokens that a conversation must leave room for


class ContextFullError(PromptError):
    """A conversation leaves no room for an answer; `too_many` tokens must go."""

    def __init__(self, prompt: int, answer: int, context: int):
        self.too_many = prompt + answer - 1 - context  # the last token takes no position
        tokens = "1 token" if self.too_many == 1 else f"{self.too_many} tokens"
        super().__init__(
            f"{tokens} too many: {prompt} of the conversation and {answer} for an answer",
            name="context",
            expected=f"at most {context} positions, of which the last new token needs none",
        )


class NothingSaidError(PromptError):
    """Ctrl-C came before the first word of an answer."""


@dataclass(kw_only=True)
class Talk:
    """A conversation and how it goes on.

    show       is given the pieces of an answer
    noted      Ctrl-C, if it is to end an answer
    attempt    how often the last message was answered before: the row of the draws
    pending    a message for which there was no room
    """

    speaker: Speaker
    settings: Settings
    show: Callable[[str], None]
    messages: Messages = field(default_factory=Messages)
    attempt: int = 0
    pending: str | None = None

    def ask(self, text: str, noted: CtrlC) -> Answer:
        """Add a message and answer it; the conversation stays as it was if that fails.

        Raises ChatError or PromptError for what cannot be rendered or encoded, ContextFullError,
        NothingSaidError.
        """
        self.pending = None
        with self._undone_on_error():
            self.messages.add("user", text)
            try:
                return self._answer(0, noted)
            except ContextFullError:
                self.pending = text
                raise

    def regenerate(self, noted: CtrlC) -> Answer:
        """Answer the last message of the user again, with other draws."""
        if self.messages.last_role == "assistant":
            attempt = self.attempt + 1
        elif self.messages.last_role == "user":
            attempt = 0
        else:
            raise PromptError("nothing to answer", name="/regenerate", expected="a message first")
        with self._undone_on_error():
            while self.messages.last_role == "assistant":
                self.messages.turns.pop()
            return self._answer(attempt, noted)

    def make_room(self, noted: CtrlC, tell: Callable[[int], None]) -> Answer | None:
        """Drop the oldest turns, until the pending message fits or else one; then answer it.

        tell: is given the number of messages that were dropped, before the answer. ContextFullError
        if the last message alone is too long; nothing is dropped then.
        """
        text, before = self.pending, len(self.messages.turns)
        if text is None:
            tell(len(self.messages.drop_oldest()))
            return None
        with self._undone_on_error():
            self.messages.add("user", text)
            while self._is_full():
                if not self.messages.drop_oldest():
                    raise ContextFullError(self.count(), self._least(), self.speaker.context)
            tell(before + 1 - len(self.messages.turns))
            answer = self._answer(0, noted)
        self.pending = None
        return answer

    def count(self) -> int:
        """Tokens of the conversation as the template writes it; 0 before it begins."""
        return len(self.speaker.encode(self.messages.all())) if self.messages.turns else 0

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        turns = list(self.messages.turns)
        try:
            yield
        except BaseException:
            self.messages.turns = turns
            raise

    def _is_full(self) -> bool:
        return self._room(self.count()) < self._least()

    def _room(self, prompt: int) -> int:
        return self.speaker.context - prompt + 1  # the last token takes no position

    def _least(self) -> int:
        return min(LEAST_ANSWER, self.settings.max_new_tokens)

    def _answer(self, attempt: int, noted: CtrlC) -> Answer:
        """Answer the conversation, and add the answer to it."""
        prompt = self.speaker.encode(self.messages.all())
        room, least = self._room(len(prompt)), self._least()
        if room < least:
            raise ContextFullError(len(prompt), least, self.speaker.context)
        answering = Answering(
            self.speaker, self._request(prompt, room, attempt), self.settings.stop, noted
        )
        for piece in answering:
            self.show(piece)
        answer = answering.answer
        if answer.finish == "cancelled" and not answer.text:
            raise NothingSaidError("stopped before the first word; nothing has changed")
        self.attempt = attempt
        self.messages.add("assistant", answer.text)
        return answer

    def _request(self, prompt: list[int], room: int, attempt: int) -> Request:
        """The request of an answer; without a seed it gets a random one."""
        seed = self.settings.seed
        if seed is None:
            seed = secrets.randbits(64) if self.settings.sampling.temperature else 0
        return Request(
            prompt=tuple(prompt),
            max_new_tokens=min(self.settings.max_new_tokens, room),
            sampling=replace(self.settings.sampling, seed=seed),
            choice=attempt,
            ends=self.speaker.config.eos_token_ids,
        )
