"""Requests answered by a session (reference/text/requests.py), for verbs.

open_exact        the engine of the flags, with kernels whose bits do not depend on the batch
open_answering    a session of one slot over it
answer_all        the new tokens of some requests, with their scores
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

from planish.opening import keep_programs, open_engine
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PlanishError
from planish.reference.files.load import Checkpoint
from planish.reference.text.requests import OneByOne, Request, Session, TokenScore


def open_exact(checkpoint: Checkpoint, args: argparse.Namespace) -> Any:
    """The engine of --engine, for a session.

    With matrix tiles the bits of weight-only linears depend on the batch and no prefix would be
    shared (fast/session/exactness.py): these models run without tiles.
    """
    kernels = args.kernels
    if args.engine == "fast":
        keep_programs(args.compilation_cache)
        from planish.fast.session.opening import exact_kernels

        kernels = exact_kernels(checkpoint, kernels)
    return open_engine(checkpoint, argparse.Namespace(**{**vars(args), "kernels": kernels}))


def open_answering(
    checkpoint: Checkpoint, args: argparse.Namespace, context: int
) -> tuple[Any, Session]:
    """The engine of --engine and a session of one slot; prefixes are found again where they can
    be."""
    engine = open_exact(checkpoint, args)
    return engine, session_over(engine, 1, context)


def session_over(engine: Any, slots: int, context: int) -> Session:
    """A session over an engine that is open; imports jax only for the fast one."""
    if isinstance(engine, ReferenceEngine):
        return OneByOne(engine.config, engine.weights, context)
    from planish.fast.session.opening import open_session

    return open_session(engine, slots=slots, context=context)


def answer_all(
    session: Session, requests: Sequence[Request]
) -> Iterator[tuple[int, int, TokenScore]]:
    """Yield (index of the request, token, its score) as tokens are found, until all are done.

    The requests must ask for logprobs. Raises PlanishError for one that fails.
    """
    index = {session.submit(request): i for i, request in enumerate(requests)}
    running = set(index)
    while running:
        for event in session.step():
            if event.finish == "error":
                raise PlanishError(event.error)
            for token, score in zip(event.tokens, event.scores, strict=False):
                yield index[event.handle], token, score
            if event.finish is not None:
                running.discard(event.handle)
