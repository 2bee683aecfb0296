"""From the logits of a row's tokens to its new tokens, their scores and the event that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planish.fast.session.rows import Part, Row
from planish.reference.errors import PlanishError
from planish.reference.text.constraint import accept_token, mask_logits
from planish.reference.text.requests import Event, TokenScore, score_new, score_tokens
from planish.reference.text.sampling import next_token

NO_NUMBERS = "logits: cannot sample (found NaN or Inf)"


def answer_row(
    row: Row, logits: np.ndarray, sampled: Sequence[int] | None, guesses: Sequence[int] = ()
) -> Event:
    """The next tokens of a row whose last token and guesses a step has computed.

    logits   [1 + G, V] of these tokens
    sampled  [1 + G] by the device, -1 from logits that are no numbers; None: the host samples

    A guess is accepted if it is what is sampled, and then the next one may be."""
    found, scores = list[int](), list[TokenScore]()
    request = row.request
    for i, last in enumerate(logits[: len(guesses) + 1]):
        try:
            token = choose_token(row, last, sampled, found)
            ended = token in request.ends or accept_token(row.matcher, token)
        except PlanishError as problem:
            if not found:
                return Event(handle=row.handle, finish="error", error=str(problem))
            break  # the next step says so
        found.append(token)
        scores += score_new(last, token, request.logprobs)
        if ended or i == len(guesses) or token != guesses[i]:
            break
    accepted = sum(a == b for a, b in zip(found, guesses, strict=False))
    row.written = len(row.tokens) + min(accepted, len(found) - 1)
    event = add_tokens(row, found, tuple(scores))
    return replace(event, accepted=accepted, rejected=len(guesses) - accepted)


def choose_token(
    row: Row, logits: np.ndarray, sampled: Sequence[int] | None, found: Sequence[int]
) -> int:
    """The token after those that the row and this step have found, from the last one's logits."""
    if sampled is None:
        request, text = row.request, [*row.text, *found]
        masked = mask_logits(logits, row.matcher, request.excluded(len(text)))
        return next_token(masked, request.sampling, request.prompt, text, request.choice)
    if sampled[len(found)] < 0:
        raise PlanishError("cannot sample", name="logits", found="NaN or Inf")
    return int(sampled[len(found)])


def answer_several(row: Row, found: Sequence[int]) -> Event:
    """The tokens of one dispatch; -1 where logits were no numbers."""
    good = next((i for i, token in enumerate(found) if token < 0), len(found))
    if good == 0:
        return Event(handle=row.handle, finish="error", error=NO_NUMBERS)
    row.written += good
    return add_tokens(row, found[:good])


def read_part(part: Part, logits: np.ndarray, sampled: Sequence[int] | None) -> list[Event]:
    """Tokens of a prompt are computed; if they are its last, the first of its answer is found.

    logits   [W, V] of those at part.wanted
    sampled  the first token of the answer, by the device; None: the host samples
    """
    row, wants = part.row, part.row.request.prompt_logprobs
    try:
        if wants is not None:
            following = row.request.prompt[part.first + 1 : part.first + part.count + 1]
            row.scores += score_tokens(logits[: len(following)], following, wants)
    except PlanishError as problem:
        return [Event(handle=row.handle, finish="error", error=str(problem))]
    row.written += part.count
    return [finish_prompt(row, logits[-1], sampled)] if part.is_last else []


def finish_prompt(row: Row, last: np.ndarray, sampled: Sequence[int] | None) -> Event:
    """A prompt is done: its scores, and the first token of its answer. last: logits [V]."""
    prompt = () if row.request.prompt_logprobs is None else tuple(row.scores)
    if row.request.max_new_tokens == 0:
        return Event(handle=row.handle, prompt=prompt, finish="length", cached=row.cached)
    return replace(answer_row(row, last[None], sampled), prompt=prompt, cached=row.cached)


def add_tokens(row: Row, found: Sequence[int], scores: tuple[TokenScore, ...] = ()) -> Event:
    """New tokens of a row: up to an end, or to as many as it wants."""
    ends = row.request.ends
    kept = next((i for i, token in enumerate(found) if token in ends), len(found))
    row.tokens += found[:kept]
    event = Event(handle=row.handle, tokens=tuple(found[:kept]), scores=scores)
    if kept < len(found):
        event = replace(event, end=found[kept], finish="stop")
    elif row.is_complete:
        event = replace(event, finish="stop")
    elif row.new == row.request.max_new_tokens:
        event = replace(event, finish="length")
    if event.finish:
        row.written = min(row.written, len(row.tokens))
    return event
