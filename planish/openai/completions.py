"""POST /v1/completions: prompts that are continued, or only scored (echo with logprobs).

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from planish.openai.answer import Job
from planish.openai.bodies import check_fields, parse_body, refuse, refuse_unsupported
from planish.openai.choice import Choice, Entry, Piece
from planish.openai.constraint import read_schema
from planish.openai.echo import Echo, echo_ids, echo_text
from planish.openai.errors import refusal_of
from planish.openai.jobs import Asked, make_job, room_for
from planish.openai.sampling import MOST_CHOICES, SamplingFields, TopLogprobs, check_ids
from planish.openai.scores import completion_logprobs
from planish.openai.served import Served
from planish.openai.unsupported import REFUSED, REFUSED_COMPLETION
from planish.openai.vocabulary import Vocabulary
from planish.reference.errors import PlanishError

PROMPT = "expected a text, a list of texts, a list of token ids, or a list of such lists"


class CompletionFields(SamplingFields):
    """The fields that only completions have. logprobs: how many of the likeliest tokens are listed
    beside each token, in addition to itself."""

    logprobs: TopLogprobs | None = None
    echo: bool | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None

    def check_best(self) -> None:
        """Refuse to choose among more texts than are returned."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refuse("best_of", "only the value of n is supported", "unsupported_parameter")


@dataclass(frozen=True, kw_only=True)
class CompletionForm:
    """Choices as texts. echoes: the prompts before them, one for each n choices."""

    vocabulary: Vocabulary
    scored: bool
    n: int
    echoes: Sequence[Echo] = ()
    prefix: str = "cmpl-"
    whole: str = "text_completion"
    chunk: str = "text_completion"

    def start(self, index: int, choice: Choice) -> dict[str, Any] | None:
        if not self.echoes:
            return None
        echo = self._echo(index)
        return self._part(index, echo.text, echo.entries(choice.prompt))

    def part(self, index: int, piece: Piece) -> dict[str, Any]:
        moved = len(self._echo(index).text)
        return self._part(index, piece.text, [shift(entry, moved) for entry in piece.entries])

    def last(self, index: int, choice: Choice) -> dict[str, Any]:
        moved = len(self._echo(index).text)
        ending = [shift(entry, moved) for entry in self._ending(choice)]
        part = self._part(index, "", ending)
        logprobs = part["logprobs"] if ending else None
        return {**part, "logprobs": logprobs, "finish_reason": choice.finish}

    def complete(self, index: int, choice: Choice) -> dict[str, Any]:
        echo = self._echo(index)
        moved = len(echo.text)
        new = [shift(entry, moved) for entry in (*choice.listed, *self._ending(choice))]
        entries = [*echo.entries(choice.prompt), *new]
        part = self._part(index, echo.text + choice.text, entries)
        return {**part, "finish_reason": choice.finish}

    def _echo(self, index: int) -> Echo:
        return self.echoes[index // self.n] if self.echoes else Echo()

    def _ending(self, choice: Choice) -> list[Entry]:
        return [] if choice.ending is None else [choice.ending]

    def _part(self, index: int, text: str, entries: Sequence[Entry]) -> dict[str, Any]:
        scored = completion_logprobs(self.vocabulary, entries) if self.scored else None
        return {"index": index, "text": text, "logprobs": scored, "finish_reason": None}


def shift(entry: Entry, characters: int) -> Entry:
    """A token whose text follows so many characters."""
    return replace(entry, start=entry.start + characters, end=entry.end + characters)


def read_completion(body: bytes, served: Served) -> Job:
    """What a body of /v1/completions asks for. Raises RequestRefused."""
    values = parse_body(body)
    fields = check_fields(CompletionFields, values)
    served.check_model(fields.model)
    refuse_unsupported(values, {**REFUSED, **REFUSED_COMPLETION})
    fields.check_stream()
    fields.check_best()
    schema = read_schema(values)
    given = read_prompts(values.get("prompt"))
    special = fields.add_special_tokens is not False
    prompts = [encode_prompt(one, special, served) for one in given]
    scored = fields.logprobs if fields.echo else None
    asked = Asked(
        param="prompt",
        prompts=prompts,
        max_tokens=fields.max_tokens,
        logprobs=fields.logprobs,
        prompt_logprobs=scored,
    )
    for prompt in prompts:  # before work that grows with them
        room_for(served, len(prompt), asked)
    echoes = [
        echo_text(served, ids, text, special)
        if isinstance(text, str)
        else echo_ids(served, ids, fields.skips_special)
        for ids, text in zip(prompts, given, strict=True)
        if fields.echo
    ]
    form = CompletionForm(
        vocabulary=served.vocabulary,
        scored=fields.logprobs is not None,
        n=fields.n or 1,
        echoes=echoes,
    )
    return make_job(served, form, fields, asked, schema)


def read_prompts(value: Any) -> Sequence[str | list[int]]:
    """The prompts of a body: a text, texts, token ids, or lists of token ids."""
    if value is None:
        raise refuse("prompt", "Field required", "missing_required_parameter")
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise refuse("prompt", PROMPT)
    if are_ids(value):
        return [value]
    if len(value) > MOST_CHOICES:
        raise refuse("prompt", f"expected at most {MOST_CHOICES} prompts, found {len(value)}")
    for number, one in enumerate(value):
        if not isinstance(one, type(value[0])) or not (isinstance(one, str) or are_ids(one)):
            raise refuse(f"prompt.{number}", PROMPT)
    return value


def are_ids(value: Any) -> bool:
    """Whether a value is a list of one or more whole numbers."""
    return isinstance(value, list) and value != [] and all(type(one) is int for one in value)


def encode_prompt(prompt: str | list[int], special: bool, served: Served) -> list[int]:
    """Token ids of a prompt: nothing is added to ids, and special tokens in a text are tokens."""
    if not isinstance(prompt, str):
        return list(check_ids("prompt", prompt, served))
    served.check_length("prompt", len(prompt))
    try:
        return served.tokenizer.encode(prompt, add_special_tokens=special)
    except PlanishError as problem:
        raise refusal_of(problem, "prompt") from None
