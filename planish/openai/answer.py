"""From a checked body to requests, and from their events to what the client is sent.

A Job is what a body asks for; Job.open() is its Answer. An Answer makes the same text streamed or
whole: whole() is what all chunks together say.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from planish.openai.choice import Choice, Piece, open_choice
from planish.openai.served import Served
from planish.reference.text.requests import Event, Request


class Form(Protocol):
    """How one endpoint writes choices."""

    @property
    def prefix(self) -> str:
        """What ids begin with."""

    @property
    def whole(self) -> str:
        """`object` of an answer."""

    @property
    def chunk(self) -> str:
        """`object` of a part of it."""

    def start(self, index: int, choice: Choice) -> dict[str, Any] | None:
        """The first chunk's choice, if the form has one."""

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        """A choice of a chunk with text."""

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice of the last chunk, with finish_reason."""

    def complete(self, index: int, choice: Choice) -> dict[str, Any]:
        """A choice of the whole answer."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a body asks for. Requests are in the order of the choices: n of each prompt.

    seed          of all of them; random unless the body names one
    cache_salt    requests share a cached prefix only with those that give the same
    skip_special  leave special tokens out of texts
    """

    served: Served
    form: Form
    requests: tuple[Request, ...]
    n: int
    seed: int
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    cache_salt: str = ""
    skip_special: bool = True
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: secrets.token_hex(12))

    def open(self) -> Answer:
        """An answer without any event."""
        return Answer(self)


class Answer:
    """The choices of a job as they grow. One thread at a time."""

    def __init__(self, job: Job):
        self.job = job
        self.choices = [
            open_choice(job.served, one, job.stop, job.skip_special) for one in job.requests
        ]

    def feed(self, index: int, event: Event) -> list[dict[str, Any]]:
        """The chunks that a stream is sent for an event of the index-th request."""
        choice, form = self.choices[index], self.job.form
        if choice.is_done:
            return []
        piece = choice.feed(event)
        parts: list[dict[str, Any] | None] = []
        if not choice.started and not choice.failure:
            choice.started = True
            parts.append(form.start(index, choice))
        if piece.text or piece.entries:
            parts.append(form.part(index, piece))
        if piece.finish is not None:
            parts.append(form.last(index, choice))
        return [self._chunk([part]) for part in parts if part is not None]

    def is_done(self, index: int) -> bool:
        """Whether a choice is complete; its request is then of no more use."""
        return self.choices[index].is_done

    @property
    def finished(self) -> bool:
        return all(choice.is_done for choice in self.choices)

    @property
    def failure(self) -> str | None:
        """What failed in the engine, if something did."""
        return next((choice.failure for choice in self.choices if choice.failure), None)

    def closing(self) -> list[dict[str, Any]]:
        """The chunks after the last choice: the usage, if it was asked for."""
        if not self.job.include_usage:
            return []
        return [{**self._chunk([]), "usage": self.usage()}]

    def whole(self) -> dict[str, Any]:
        """The answer that is not streamed; all choices must be complete."""
        form = self.job.form
        choices = [form.complete(index, choice) for index, choice in enumerate(self.choices)]
        return {**self._head(form.whole), "choices": choices, "usage": self.usage()}

    def usage(self) -> dict[str, Any]:
        """How many tokens; a prompt counts once, for all its choices. Guesses if there were any."""
        firsts = range(0, len(self.choices), self.job.n)
        prompt = sum(len(self.job.requests[i].prompt) for i in firsts)
        new = sum(choice.tokens for choice in self.choices)
        cached = sum(self.choices[i].cached for i in firsts)
        usage = {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        return usage | self._guesses()

    def _guesses(self) -> dict[str, Any]:
        """Tokens that were guessed and verified, in OpenAI's words for predictions."""
        accepted = sum(choice.accepted for choice in self.choices)
        rejected = sum(choice.rejected for choice in self.choices)
        if not accepted + rejected:
            return {}
        details = {"accepted_prediction_tokens": accepted, "rejected_prediction_tokens": rejected}
        return {"completion_tokens_details": details}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.job.include_usage else {}
        return {**self._head(self.job.form.chunk), "choices": choices, **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        job = self.job
        return {
            "id": job.form.prefix + job.id,
            "object": kind,
            "created": job.created,
            "model": job.served.name,
            "system_fingerprint": job.served.fingerprint,
            "seed": job.seed,
        }
