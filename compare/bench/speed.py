"""Tokens per second of planish and of its peers, and what the machine can give, in one run.

    pp512          a prompt of 512 tokens, from start to its last logits     (llama-bench's names)
    tg128          128 tokens, one by one, after one token
    tg128 x8       the same for 8 sequences at once, tokens of all of them
    tg32 @4096     32 tokens after 4096

All engines are measured in turns, round by round, so that a shared machine's good and bad minutes
fall on all of them, and the limits are sampled in every round. A figure is the median of the
rounds, with the extremes.

Decoding reads every weight and the cache once per step, of experts the chosen ones, so its limit
is memory bandwidth over these bytes, as they are stored. (A model that fits into the processor's
caches can pass it.) A prompt multiplies: its limit is the rate of byte products, or of XLA's
float32 product where activations are floats, over two operations per weight and token.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from planish.compare.bench import engines as contenders
from planish.compare.bench.engines import Contender, active_share, cache_bytes, weights_per_token
from planish.compare.bench.roofline import Limits, cores, machine
from planish.compare.bench.sizes import Shape
from planish.reference.errors import PlanishError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.progress import Progress, no_progress

RUNS = 5
TESTS = ("pp512", "tg128")


@dataclass(frozen=True, kw_only=True)
class Test:
    """One question: `new` == 0 is a prompt of `context` tokens."""

    name: str
    new: int
    batch: int
    context: int

    @classmethod
    def parse(cls, text: str) -> Test:
        """pp512, tg128, tg128x8, tg32@4096; raises PlanishError."""
        found = re.fullmatch(r"(pp|tg)([1-9]\d*)(?:x([1-9]\d*))?(?:@([1-9]\d*))?", text)
        if found is None or (found[1] == "pp" and (found[3] or found[4])):
            expected = "tests such as pp512, tg128, tg128x8, tg32@4096"
            raise PlanishError("unknown", name="tests", expected=expected, found=repr(text))
        count = int(found[2])
        if found[1] == "pp":
            return cls(name=text, new=0, batch=1, context=count)
        batch, context = int(found[3] or 1), int(found[4] or 1)
        return cls(name=text, new=count, batch=batch, context=context)

    def ask(self, contender: Contender) -> float:
        """Tokens per second, once."""
        if self.new == 0:
            return self.context / contender.asked.prefill(self.context)
        return self.batch * self.new / contender.asked.decode(self.new, self.batch, self.context)

    def fitting(self, longest: int) -> Test:
        """The same within a model's positions, shortened where it must be."""
        if self.new == 0:
            context = min(self.context, longest)
            name = f"pp{context}" if context < self.context else self.name
            return replace(self, name=name, context=context)
        new = min(self.new, longest - 1)
        context = min(self.context, longest - new)
        if (new, context) == (self.new, self.context):
            return self
        name = f"tg{new}" + f"@{context}" * (context > 1)
        return replace(self, name=name, new=new, context=context)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One test of one engine. Rates are tokens per second; `ratio` is planish's over this one's."""

    model: str
    engine: str
    format: str
    test: str
    size: int  # bytes of weights that one token reads
    threads: int
    median: float
    low: float
    high: float
    runs: int
    limit: float | None
    percent_of_limit: float | None
    limited_by: str | None
    ratio: float | None
    compared_with: str | None
    version: str


def run(
    title: str,
    config: ModelConfig,
    engines: Sequence[Contender],
    tests: Sequence[Test],
    native: bool,
    runs: int = RUNS,
    progress: Progress = no_progress,
    missing: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything: {rows, limits, machine, engines, missing}, ready for JSON."""
    tests, limits = fitted(tests, config.max_positions), Limits(native)
    rates: dict[tuple[int, str], list[float]] = {}
    for number in progress(range(runs + 1), title):
        limits.sample()
        for index, engine in enumerate(engines):
            for test in tests:
                rate = test.ask(engine)
                if number > 0:  # the first compiles and warms up
                    rates.setdefault((index, test.name), []).append(rate)
    bounds = limits.values()
    rows = [
        row_of(title, config, engines, index, test, rates, bounds)
        for test in tests
        for index in range(len(engines))
    ]
    return {
        "rows": [asdict(row) for row in rows],
        "limits": bounds,
        "machine": machine(),
        "engines": [facts(engine) for engine in engines],
        "missing": list(missing),
    }


def facts(engine: Contender) -> dict[str, Any]:
    """What is reported besides the speeds: loading and compiling."""
    compiled = engine.asked.engine.compile_seconds if engine.ours else None  # type: ignore[attr-defined]
    return {
        "engine": engine.engine,
        "format": engine.format,
        "version": engine.version,
        "load_seconds": engine.load_seconds,
        "compile_seconds": compiled,
    }


def row_of(
    title: str,
    config: ModelConfig,
    engines: Sequence[Contender],
    index: int,
    test: Test,
    rates: dict[tuple[int, str], list[float]],
    bounds: dict[str, float],
) -> Row:
    """The median, the extremes, the limit, and how planish compares."""
    engine, found = engines[index], rates[index, test.name]
    median = statistics.median(found)
    limit, name = limit_of(engine, config, test, bounds)
    rival = None if engine.ours else rival_of(engines, engine.bits)
    ratio = statistics.median(rates[rival, test.name]) / median if rival is not None else None
    return Row(
        model=title,
        engine=engine.engine,
        format=engine.format,
        test=test.name,
        size=engine.bytes,
        threads=cores(),
        median=median,
        low=min(found),
        high=max(found),
        runs=len(found),
        limit=limit,
        percent_of_limit=100 * median / limit,
        limited_by=name,
        ratio=ratio,
        compared_with=None if rival is None else engines[rival].format,
        version=engine.version,
    )


def fitted(tests: Sequence[Test], longest: int) -> list[Test]:
    """The tests within a model's positions; a notice names those that had to be shortened."""
    fitting = [test.fitting(longest) for test in tests]
    for test, shorter in zip(tests, fitting, strict=True):
        if shorter != test:
            notice(f"{test.name}: {shorter.name} instead, as the model has {longest} positions")
    return fitting


def limit_of(
    engine: Contender, config: ModelConfig, test: Test, bounds: dict[str, float]
) -> tuple[float, str]:
    """Tokens per second that the machine would allow, and what limits them."""
    if test.new == 0:
        kind = "int8" if engine.integer else "float32"
        rate = bounds[f"{kind}_operations_per_second"]
        return rate / (2 * weights_per_token(config)), f"{kind} products"
    slots = test.context + test.new / 2  # on average
    more = active_share(config, test.batch) - active_share(config)  # experts, than one token
    step = engine.bytes + more * engine.experts + test.batch * cache_bytes(config, slots)
    return test.batch * bounds["memory_read_bytes_per_second"] / step, "memory"


def rival_of(engines: Sequence[Contender], bits: int) -> int | None:
    """Our first engine of this width with integer activations; a wider peer meets our INT8."""
    ours = [index for index, engine in enumerate(engines) if engine.ours]
    for wanted in (bits, 8):
        for index in ours:
            if engines[index].bits == wanted and engines[index].integer:
                return index
    return ours[0] if ours else None


def run_model(
    checkpoint: Checkpoint,
    tests: Sequence[Test],
    native: bool,
    peers: Sequence[str] = (),
    runs: int = RUNS,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """A directory of the user's, and peers at its shape with random weights."""
    with ExitStack() as stack:
        engine, shape = contenders.ours(checkpoint, native), contenders.shape_of(checkpoint)
        others: list[Contender] = []
        missing = [f"{name}: only Llama shapes" for name in peers if shape is None]
        if shape is not None:
            bits = {4, 8} if engine.bits > 8 else {engine.bits}
            others, missing = contenders.open_peers(stack, list(peers), shape, bits, None)
        every = [engine, *others]
        title = checkpoint.path.name
        return run(title, checkpoint.config, every, tests, native, runs, progress, missing)


def run_shape(
    shape: Shape,
    recipes: Sequence[str],
    tests: Sequence[Test],
    native: bool,
    directory: Path,
    peers: Sequence[str] = (),
    kv_cache: str = "float32",
    runs: int = RUNS,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Random models of a shape by several recipes, and peers at the same shape."""
    with ExitStack() as stack:
        mine = [
            contenders.random_contender(shape, name, directory, native, kv_cache)
            for name in progress(list(recipes), f"{shape.name}: random weights")
        ]
        bits = {engine.bits for engine in mine}
        bits |= {16} if 8 in bits else set()
        others, missing = contenders.open_peers(stack, list(peers), shape, bits, directory)
        config = mine[0].asked.engine.config  # type: ignore[attr-defined]
        every = [*mine, *others]
        return run(shape.name, config, every, tests, native, runs, progress, missing)
