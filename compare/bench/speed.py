"""Tokens per second of planish and its peers, and the machine's roofline, in one run.

All engines are measured in turn, round by round, so that a shared machine's fast and slow minutes
affect all of them, and the machine's peak rates are sampled in every round. A figure is the median
of the rounds; the extremes are reported with it. roofline.py has the bounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from planish.compare.bench.engines import (
    ALONE,
    MeasuredEngine,
    Processes,
    open_peers,
    open_planish,
    open_random,
    size_of,
)
from planish.compare.bench.machine import PeakRates, count_threads, describe_machine
from planish.compare.bench.peers import PeerError
from planish.compare.bench.roofline import bound_decoding, bound_prompt
from planish.compare.bench.sizes import ModelSize
from planish.compare.bench.workload import Workload, shorten_all
from planish.reference.files.load import Checkpoint
from planish.reference.model.config import ModelConfig
from planish.reference.progress import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure. runs: rounds, after one that only warms up."""

    workloads: Sequence[Workload]
    native: bool
    peers: Sequence[str] = ()
    runs: int = 5
    progress: Progress = no_progress
    processes: Processes = ALONE


@dataclass(frozen=True, kw_only=True)
class Row:
    """One test of one engine. Rates are tokens per second; `ratio` is planish's over this one's."""

    model: str
    engine: str
    format: str
    mode: str  # how a peer is run that cannot be run in its usual way; planish's processes
    test: str
    size: int  # bytes of weights that one token reads
    threads: int  # of each process
    processes: int
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


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run measured: rates[engine][workload], one for each round, and the peak rates.

    lost: a line for each peer that died; it is not among the engines.
    """

    title: str
    config: ModelConfig
    engines: Sequence[MeasuredEngine]
    workloads: Sequence[Workload]
    rates: list[dict[Workload, list[float]]]
    peaks: dict[str, float]
    lost: Sequence[str]


def measure_model(checkpoint: Checkpoint, options: Options) -> dict[str, Any]:
    """Measure a user's model, and peers at its size with random weights."""
    with ExitStack() as stack:
        size = size_of(checkpoint)
        engine = open_planish(checkpoint, options.native, processes=options.processes)
        engines, missing = [engine], [f"{name}: only Llama shapes" for name in options.peers]
        if size is not None:
            bits = {4, 8} if engine.bits > 8 else {engine.bits}
            others, missing = open_peers(stack, list(options.peers), size, bits, None)
            engines += others
        results = measure(checkpoint.path.name, checkpoint.config, engines, options)
        return report(results, missing)


def measure_size(
    size: ModelSize,
    recipes: Sequence[str],
    options: Options,
    directory: Path,
    adapt: Callable[[Checkpoint], Checkpoint],
) -> dict[str, Any]:
    """Measure random models of one size, one for each recipe, and peers at the same size.

    adapt: gives a checkpoint the attention and the cache to measure.
    """
    with ExitStack() as stack:
        checkpoints, engines = [], []
        for name in options.progress(list(recipes), f"{size.name}: random weights"):
            checkpoints.append(adapt(open_random(size, name, directory)))
            engines.append(open_planish(checkpoints[-1], options.native, name))
        bits = {engine.bits for engine in engines}
        bits |= {16} if 8 in bits else set()
        others, missing = open_peers(stack, list(options.peers), size, bits, directory)
        config = checkpoints[0].config
        return report(measure(size.name, config, [*engines, *others], options), missing)


def measure(
    title: str, config: ModelConfig, engines: Sequence[MeasuredEngine], options: Options
) -> Results:
    """Time every engine on every workload, round by round; a peer that dies costs its rows."""
    workloads = shorten_all(options.workloads, config.max_positions)
    peaks = PeakRates(options.native)
    rates: list[dict[Workload, list[float]]] = [{w: [] for w in workloads} for _ in engines]
    running, lost = list(range(len(engines))), []
    for number in options.progress(range(options.runs + 1), title):
        peaks.sample()
        for index in list(running):
            try:
                time_round(engines[index], rates[index], warm_up=number == 0)
            except PeerError as problem:
                running.remove(index)
                lost.append(f"{engines[index].format} of {problem}")
    return Results(
        title=title,
        config=config,
        engines=[engines[index] for index in running],
        workloads=workloads,
        rates=[rates[index] for index in running],
        peaks=peaks.medians(),
        lost=lost,
    )


def time_round(engine: MeasuredEngine, rates: dict[Workload, list[float]], warm_up: bool) -> None:
    """Time one engine once on every workload; a round that warms up, or compiles, is not kept."""
    for workload, found in rates.items():
        rate = workload.measure(engine.timer)
        if not warm_up:
            found.append(rate)


def report(results: Results, missing: Sequence[str]) -> dict[str, Any]:
    """{rows, limits, machine, engines, missing}, ready for JSON. missing: peers not measured."""
    rows = [
        make_row(results, index, workload)
        for workload in results.workloads
        for index in range(len(results.engines))
    ]
    return {
        "rows": [asdict(row) for row in rows],
        "limits": results.peaks,
        "machine": describe_machine(),
        "engines": [describe_engine(engine) for engine in results.engines],
        "missing": [*missing, *results.lost],
    }


def describe_engine(engine: MeasuredEngine) -> dict[str, Any]:
    """What is reported besides the speeds: the seconds of loading and compiling."""
    return {
        "engine": engine.name,
        "format": engine.format,
        "version": engine.version,
        "mode": engine.mode,
        "kernels": engine.kernels,
        "load_seconds": engine.load_seconds,
        "compile_seconds": engine.timer.compile_seconds,
    }


def make_row(results: Results, index: int, workload: Workload) -> Row:
    """One engine's median and extremes, its roofline, and how planish compares with it."""
    engine, rates = results.engines[index], results.rates[index][workload]
    median = statistics.median(rates)
    limit, limited_by = bound(results, engine, workload)
    baseline = None if engine.is_planish else find_baseline(results.engines, engine.bits)
    ratio = compared_with = None
    if baseline is not None:
        ratio = statistics.median(results.rates[baseline][workload]) / median
        compared_with = results.engines[baseline].format
    return Row(
        model=results.title,
        engine=engine.name,
        format=engine.format,
        mode=engine.mode,
        test=workload.name,
        size=engine.weight_bytes,
        threads=count_threads(),
        processes=engine.processes.count,
        median=median,
        low=min(rates),
        high=max(rates),
        runs=len(rates),
        limit=limit,
        percent_of_limit=100 * median / limit,
        limited_by=limited_by,
        ratio=ratio,
        compared_with=compared_with,
        version=engine.version,
    )


def bound(results: Results, engine: MeasuredEngine, workload: Workload) -> tuple[float, str]:
    """The roofline of a workload in tokens per second, and which peak rate sets it.

    Peak rates are of one process; several read their parts at the same time.
    """
    if workload.new == 0:
        kind = "int8" if engine.integer else "float32"
        rate = results.peaks[f"{kind}_operations_per_second"]
        prompt = engine.processes.count * bound_prompt(results.config, rate)
        return prompt, f"{kind} products"
    limit = bound_decoding(
        results.config,
        weight_bytes=engine.weight_bytes,
        expert_bytes=engine.expert_bytes,
        batch=workload.batch,
        slots=workload.context + workload.new / 2,  # on average
        bytes_per_second=results.peaks["memory_read_bytes_per_second"],
    )
    return engine.processes.tensor * limit, "memory"


def find_baseline(engines: Sequence[MeasuredEngine], bits: int) -> int | None:
    """The index of the planish engine that a peer with these bits per weight is compared with.

    That is the first with the same bits and INT8 activations; for a wider peer, planish's INT8.
    """
    ours = [index for index, engine in enumerate(engines) if engine.is_planish]
    for wanted in (bits, 8):
        for index in ours:
            if engines[index].bits == wanted and engines[index].integer:
                return index
    return ours[0] if ours else None
