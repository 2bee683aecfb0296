"""The child's side: build an engine, say "ready", then answer each line with one line of JSON.

    {"op": "prefill", "tokens": 512}                            -> {"seconds": ...}
    {"op": "decode", "tokens": 128, "batch": 1, "context": 1}   -> {"seconds": ...}
    {"op": "logits", "pieces": [[[1, 2]], [[3]]]}               -> {"logits": [[...]]}
    {"op": "close"}

The first line read is the Job; the first line written is {"ready": true, ...} with facts about the
engine, after a trial: a build with instructions that the processor refuses dies there. A problem is
answered with {"error": "..."}. Time is measured here, around the engine's calls, so the pipe adds
nothing to it. Everything that a library prints goes to stderr.

A new question is answered twice and only the second answer is sent: by then caches are allocated,
pages are resident and kernels are compiled, as in all later runs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

import numpy as np

from planish.compare.bench.sizes import ModelSize

TRIAL = 64  # tokens: enough rows for kernels of many rows


@dataclass(frozen=True)
class Job:
    """What to build. `directory` is empty, and is removed after the child has ended.

    fallback: the peer's own, because a child without it died.
    """

    sizes: ModelSize
    format: str
    threads: int
    directory: str
    fallback: bool

    @classmethod
    def parse(cls, line: str) -> Job:
        values = json.loads(line)
        return cls(**{**values, "sizes": ModelSize(**values["sizes"])})


class Engine(Protocol):
    """What a peer implements: a cache of several sequences, extended by tokens."""

    version: str
    weight_bytes: int  # that one token reads

    @property
    def kernels(self) -> str:
        """What multiplies, in the library's own words, after an inference."""

    def reset(self, batch: int, length: int) -> None:
        """Empty caches for `batch` sequences of up to `length` tokens."""

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        """Extend by tokens [batch, T]; logits [batch, vocab] after the last one."""


def serve(build: Callable[[Job], Engine]) -> None:
    """Build an engine and answer questions until "close" or the end of stdin."""
    pipe = take_stdout()
    job, start = Job.parse(sys.stdin.readline()), time.perf_counter()
    try:
        engine = build(job)
        seconds = time.perf_counter() - start
        facts = {"ready": True, "load_seconds": seconds} | try_out(engine, job.sizes)
    except Exception as problem:  # an engine may raise anything
        send(pipe, {"error": one_line(problem)})
        return
    send(pipe, facts)
    known: set[str] = set()
    for line in iter(sys.stdin.readline, ""):
        question = json.loads(line)
        if question["op"] == "close":
            break
        if line not in known:
            known.add(line)
            answer(engine, job.sizes, question)
        send(pipe, answer(engine, job.sizes, question))


def try_out(engine: Engine, sizes: ModelSize) -> dict[str, Any]:
    """Compute one token and then a short prompt; the facts that are known by then."""
    for tokens in (1, TRIAL):
        engine.reset(1, tokens)
        engine.forward(draw_prompts(sizes, 1, tokens))
    return {"version": engine.version, "bytes": engine.weight_bytes, "kernels": engine.kernels}


def take_stdout() -> TextIO:
    """The pipe to the parent, reserved for answers: other writes to stdout go to stderr."""
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return pipe


def send(pipe: TextIO, values: dict[str, Any]) -> None:
    pipe.write(json.dumps(values) + "\n")
    pipe.flush()


def one_line(problem: Exception) -> str:
    return " ".join(f"{type(problem).__name__}: {problem}".split())


def answer(engine: Engine, sizes: ModelSize, question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question; an exception becomes an answer too."""
    operations: dict[str, Callable[..., dict[str, Any]]] = {
        "prefill": time_prefill,
        "decode": time_decode,
        "logits": compute_logits,
    }
    arguments = dict(question)
    try:
        return operations[arguments.pop("op")](engine, sizes, **arguments)
    except Exception as problem:
        return {"error": one_line(problem)}


def time_prefill(engine: Engine, sizes: ModelSize, tokens: int) -> dict[str, float]:
    """Seconds from a prompt to the logits after its last token."""
    engine.reset(1, tokens)
    prompt = draw_prompts(sizes, 1, tokens)
    start = time.perf_counter()
    engine.forward(prompt)
    return {"seconds": time.perf_counter() - start}


def time_decode(
    engine: Engine, sizes: ModelSize, tokens: int, batch: int, context: int
) -> dict[str, float]:
    """Seconds of `tokens` greedy steps of all sequences at once, after their prompts."""
    engine.reset(batch, context + tokens)
    chosen = engine.forward(draw_prompts(sizes, batch, context)).argmax(axis=-1)
    start = time.perf_counter()
    for _ in range(tokens):
        chosen = engine.forward(chosen[:, None]).argmax(axis=-1)
    return {"seconds": time.perf_counter() - start}


def compute_logits(
    engine: Engine, _sizes: ModelSize, pieces: list[list[list[int]]]
) -> dict[str, list[list[float]]]:
    """Logits after the last of several pieces [batch, T], fed one after the other."""
    chunks = [np.array(piece, np.int64) for piece in pieces]
    engine.reset(len(chunks[0]), sum(chunk.shape[1] for chunk in chunks))
    return {"logits": [engine.forward(chunk) for chunk in chunks][-1].tolist()}


def draw_prompts(sizes: ModelSize, batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, sizes.vocab, (batch, length))
