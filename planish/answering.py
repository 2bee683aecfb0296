"""Requests answered by a session (reference/text/requests.py), for verbs.

open_answering    a session over the engine of the flags
answer_all        the new tokens of some requests, with their scores
take_step         one step of a session
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from planish.opening import keep_programs, open_engine, with_attention
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.engine import silence_overflow
from planish.reference.errors import PlanishError
from planish.reference.files.load import Checkpoint
from planish.reference.text.requests import Event, OneByOne, Request, Session, TokenScore


def open_answering(
    checkpoint: Checkpoint, args: argparse.Namespace, context: int
) -> tuple[Any, Session]:
    """The engine of --engine and a session of one slot; prefixes are found again where they can be.

    With matrix tiles the bits of weight-only linears depend on the batch and no prefix would be
    shared (fast/session/exactness.py): these models run without tiles.
    """
    kernels = args.kernels
    if args.engine == "fast":
        keep_programs(args.compilation_cache)
        from planish.fast.session.opening import exact_kernels

        kernels = exact_kernels(with_attention(checkpoint, args), kernels)
    chosen = argparse.Namespace(**{**vars(args), "kernels": kernels})
    engine = open_engine(checkpoint, chosen)
    return engine, session_over(engine, 1, context)


def session_over(engine: Any, slots: int, context: int) -> Session:
    """A session over an engine that is open; imports jax only for the fast one.

    Its memory is that of all slots and one page more: into it the end of a known prefix is copied
    for a request that needs all the others.
    """
    if isinstance(engine, ReferenceEngine):
        return OneByOne(engine.config, engine.weights, context)
    from planish.fast.session.opening import open_session
    from planish.fast.session.paged import default_memory
    from planish.fast.session.pages import PAGE
    from planish.fast.session.slots import cache_bytes

    page = cache_bytes(engine.config, 1, PAGE, engine.backend)
    memory = default_memory(engine, slots, context) + page
    return open_session(engine, slots=slots, context=context, memory=memory)


def answer_all(
    session: Session, requests: Sequence[Request]
) -> Iterator[tuple[int, int, TokenScore]]:
    """Yield (index of the request, token, its score) as tokens are found, until all are done.

    The requests must ask for logprobs. Raises PlanishError for one that fails.
    """
    index = {session.submit(request): i for i, request in enumerate(requests)}
    running = set(index)
    while running:
        for event in take_step(session):
            if event.finish == "error":
                raise PlanishError(event.error)
            for token, score in zip(event.tokens, event.scores, strict=False):
                yield index[event.handle], token, score
            if event.finish is not None:
                running.discard(event.handle)


def take_step(session: Session) -> list[Event]:
    """A step, without NumPy's warnings: an overflow ends in NaN, which is an error of its own."""
    with silence_overflow():
        return session.step()
