"""The requests of a checked body, and the bounds of what a request may ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from planish.openai.answer import Form, Job
from planish.openai.bodies import refuse
from planish.openai.constraint import constraints_of
from planish.openai.sampling import MOST_CHOICES, SamplingFields, check_ids, ends_of, sampling_of
from planish.openai.served import Served
from planish.reference.errors import SamplingError
from planish.reference.text.requests import Request
from planish.reference.text.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What both kinds of bodies ask of their prompts. param: the field of the prompt."""

    param: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int | None
    logprobs: int | None = None
    prompt_logprobs: int | None = None


def make_job(
    served: Served,
    form: Form,
    fields: SamplingFields,
    asked: Asked,
    schema: dict[str, Any] | None = None,
) -> Job:
    """The requests of a body; refused if they do not fit. A choice's index is the row of its
    draws, so an answer's seed gives all of it again. schema: of all answers, None for text."""
    n, sampling = fields.n or 1, sampling_of(fields, served)
    check_sampling(sampling, served)
    if len(asked.prompts) * n > MOST_CHOICES:
        found = f"{len(asked.prompts)} prompts with {n} choices"
        raise refuse("n", f"expected at most {MOST_CHOICES} choices, found {found}")
    ends = ends_of(fields, served)
    rooms = [room_for(served, len(prompt), asked) for prompt in asked.prompts]
    check_least(fields, rooms, schema)
    constraints = constraints_of(schema, served, ends, len(asked.prompts) * n)
    requests = [
        Request(
            prompt=tuple(check_ids(asked.param, prompt, served)),
            max_new_tokens=rooms[number],
            sampling=sampling,
            choice=number * n + choice,
            ends=ends,
            logprobs=asked.logprobs,
            prompt_logprobs=asked.prompt_logprobs,
            constraint=constraints[number * n + choice],
            min_new_tokens=fields.min_tokens or 0,
        )
        for number, prompt in enumerate(asked.prompts)
        for choice in range(n)
    ]
    options = fields.stream_options
    return Job(
        served=served,
        form=form,
        requests=tuple(requests),
        n=n,
        seed=sampling.seed,
        stop=tuple(fields.stop or ()),
        stream=bool(fields.stream),
        include_usage=bool(options and options.include_usage),
        cache_salt=fields.cache_salt or "",
        skip_special=fields.skips_special,
    )


def check_least(
    fields: SamplingFields, rooms: Sequence[int], schema: dict[str, Any] | None
) -> None:
    """Refuse min_tokens with more tokens than there may be, or with another end of a text."""
    least = fields.min_tokens or 0
    if least > min(rooms):
        raise refuse("min_tokens", f"expected at most the {min(rooms)} new tokens of the answer")
    if least and (fields.stop or schema is not None):
        problem = "not with stop or response_format, which may end the text before"
        raise refuse("min_tokens", problem, "unsupported_parameter")


def check_sampling(sampling: Sampling, served: Served) -> None:
    """Refuse a parameter outside its range."""
    try:
        sampling.check(served.config.vocab_size)
    except SamplingError as problem:
        raise refuse(problem.name or "temperature", f"expected {problem.expected}") from None


def room_for(served: Served, prompt: int, asked: Asked) -> int:
    """How many new tokens a prompt gets: as many as asked for, or what fits of the default.

    Refused if they do not fit: nothing is ever cut away to make room.
    """
    room = served.context - prompt + 1  # the last new token needs no position
    wanted = asked.max_tokens
    if wanted is None and room >= 1:
        return min(served.max_tokens, room)
    new = 1 if wanted is None else wanted
    if prompt + max(new - 1, 0) > served.context:
        param = "max_tokens" if prompt <= served.context and wanted else asked.param
        problem = f"the context is {served.context} tokens; {prompt} tokens of the prompt and"
        raise refuse(param, f"{problem} {new} new ones do not fit", "context_length_exceeded")
    return new
