"""Opens a session: batching where a model's bits allow it, otherwise one request after another.

A program that serves does, in this order:

    choice = exact_kernels(checkpoint, choice)       # which kernels: they are a process's, not a
    native = choose_kernels(choice, cache)           # session's (native/library.py)
    session = open_session(Engine(checkpoint, native), slots=8, context=4096, memory=2**31)
    session.warm()
"""

from __future__ import annotations

from planish.fast.native import backend as native_backend
from planish.fast.native.cache import can_tile
from planish.fast.session.batching import Batching, Others
from planish.fast.session.engine import Engine
from planish.fast.session.exactness import exact_kernels
from planish.fast.session.lookup import VERIFIED
from planish.fast.session.one_by_one import FastOneByOne
from planish.fast.session.paged import default_memory
from planish.fast.session.placing import OneDevice
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PlanishError
from planish.reference.memory import GENERATE, memory_errors
from planish.reference.text.requests import OneByOne, Session

__all__ = ["exact_kernels", "open_session"]

MOST_SLOTS = 256


def open_session(
    engine: Engine | ReferenceEngine,
    *,
    slots: int = 8,
    context: int | None = None,
    memory: int | None = None,
    lookup: int = 0,
    others: Others | None = None,
) -> Session:
    """A session over an engine; its `notes` say what was chosen, and why.

    slots     requests at the same time, at most; a session may have fewer
    context   tokens of a request, prompt and answer; None: all of the model's positions
    memory    bytes of keys and values; None: what all slots need, at most a quarter of what is free
    lookup    tokens that are guessed from the text and verified in one step, at most; 0: none
    others    processes that run what this one does; None: no others, or they decide alike

    Raises PlanishError for bad values, if memory does not hold one request of `context` tokens, or
    for others without the native kernels.
    """
    check_range("slots", slots, MOST_SLOTS)
    context = engine.config.max_positions if context is None else context
    check_range("context", context, engine.config.max_positions)
    if lookup:
        check_range("lookup", lookup, VERIFIED - 1)
    if isinstance(engine, ReferenceEngine):
        return OneByOne(engine.config, engine.weights, context)
    if others is None and not isinstance(engine.placement, OneDevice):
        return FastOneByOne(engine, context, "every process decides by itself")
    if others is None and engine.backend is not native_backend:
        return FastOneByOne(engine, context, "the numbers of XLA's form depend on the batch")
    if others is None and not can_tile(engine.config):
        return FastOneByOne(engine, context, "the kernels do not hold this model's cache")
    with memory_errors(f"{GENERATE}, a shorter context, or an int8 cache"):
        if memory is None:
            memory = default_memory(engine, slots, context)
        return Batching(engine, slots, context, memory, lookup=lookup, others=others)


def check_range(name: str, value: int, most: int) -> None:
    """Raise PlanishError for a number that is not in 1..most."""
    if not 1 <= value <= most:
        raise PlanishError("bad value", name=name, expected=f"1..{most}", found=value)
