"""Servers under load, in turn, round by round: tokens per second, first tokens and gaps.

    serve x8    8 clients at once, each with a few requests one after another: tokens per second of
                all together (median, low, high of the rounds); milliseconds to a request's first
                piece of text, and between two pieces, over all requests of all rounds
    pp900 in 4  a prompt of 900 tokens comes while 4 clients are answered: the largest gap of theirs
                until its first token, over the median one. That is the median step of a chunk,
                since each step has a token of each of them

A piece is what a client reads at a time. A server may send several tokens in one, as planish does
where no prompt waits: the gap is then that between the pieces, which is what a reader notices.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.bench.engines import size_of
from planish.compare.bench.machine import count_threads, describe_machine
from planish.compare.bench.serving.crowd import (
    SHORT,
    Crowd,
    Interruption,
    interrupt,
    send_crowd,
)
from planish.compare.bench.serving.servers import MeasuredServer, serve_peers, serve_planish
from planish.reference.files.load import Checkpoint
from planish.reference.progress import Progress, no_progress

PROMPT, NEW = 64, 64  # tokens of a request
LONG, LONG_NEW, AMONG = 900, 200, 4  # the long prompt; tokens of those that it interrupts; how many


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure. words: further flags of planish serve; requests: of each client in a round;
    runs: rounds, after one that only warms up."""

    clients: Sequence[int] = (1, 4, 8, 16, 32)
    peers: Sequence[str] = ()
    words: Sequence[str] = ()
    requests: int = 2
    runs: int = 3
    directory: Path | None = None
    positions: int = 8192  # of the model: with fewer, prompts and answers are shorter
    progress: Progress = no_progress

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens of a prompt and of its answer."""
        return min(PROMPT, self.positions // 2), min(NEW, self.positions // 2)

    @property
    def long(self) -> tuple[int, int]:
        """Tokens of the long prompt, and of the answers that it interrupts."""
        return min(LONG, self.positions - 2), min(LONG_NEW, self.positions - SHORT)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One test of one server.

    median, low, high   of the rounds: tokens per second; of an interruption, largest gap / median
    first, gap          milliseconds: to the first piece, between pieces; p50, p99
    again               milliseconds to the first piece of a prompt that was sent before
    ratio               planish's median over this one's
    """

    model: str
    engine: str
    format: str
    mode: str
    test: str
    clients: int
    threads: int
    unit: str
    median: float
    low: float
    high: float
    runs: int
    first_p50: float
    first_p99: float
    gap_p50: float
    gap_p99: float
    gap_high: float
    again: float | None
    ratio: float | None
    compared_with: str | None
    version: str


def measure_servers(title: str, checkpoints: dict[str, Checkpoint], options: Options) -> Any:
    """{rows, machine, engines, missing} of planish on these checkpoints, and of peers at their
    size. The names of checkpoints are those of their formats."""
    positions = min(one.config.max_positions for one in checkpoints.values())
    options = replace(options, positions=positions)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(serve_planish(one, form, options.words))
            for form, one in checkpoints.items()
        ]
        size, missing = size_of(next(iter(checkpoints.values()))), list[str]()
        if size is None:
            missing = [f"{name}: only Llama shapes" for name in options.peers]
        else:
            bits, names = {server.bits for server in servers}, list(options.peers)
            others, missing = serve_peers(stack, names, size, bits, options.directory)
            servers += others
        return report(title, servers, measure(title, servers, options), missing)


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured of one server."""

    crowds: dict[int, list[Crowd]]  # by the number of clients, one for each round
    interruptions: list[Interruption]
    long: int = LONG  # tokens of the prompts that interrupted


def measure(title: str, servers: Sequence[MeasuredServer], options: Options) -> list[Found]:
    """Ask every server in every round; the first round is not kept."""
    found = [
        Found(crowds={n: [] for n in options.clients}, interruptions=[], long=options.long[0])
        for _ in servers
    ]
    for number in options.progress(range(options.runs + 1), title):
        for server, kept in zip(servers, found, strict=True):
            asked, warm_up = server.asked, number == 0
            for clients in options.clients[:1] if warm_up else options.clients:
                crowd = send_crowd(asked, clients, options.requests, options.sizes)
                if not warm_up:
                    kept.crowds[clients].append(crowd)
            interruption = interrupt(asked, AMONG, *options.long)
            if not warm_up:
                kept.interruptions.append(interruption)
    return found


def report(
    title: str, servers: Sequence[MeasuredServer], found: Sequence[Found], missing: Sequence[str]
) -> dict[str, Any]:
    """All rows, test by test, ready for JSON."""
    ours = [server for server in servers if server.is_planish]
    by_name = {server.format: one for server, one in zip(servers, found, strict=True)}
    rows = list[Row]()
    for clients in found[0].crowds:
        for server, one in zip(servers, found, strict=True):
            base = baseline(ours, server)
            rate = None if base is None else rate_of(by_name[base].crowds[clients])
            rows.append(crowd_row(title, server, one.crowds[clients], (clients, base, rate)))
    for server, one in zip(servers, found, strict=True):
        noticed = [each for each in one.interruptions if each.gaps]
        if noticed:  # others were still being answered
            rows.append(interruption_row(title, server, noticed, one.long))
    return {
        "rows": [asdict(row) for row in rows],
        "machine": describe_machine(),
        "engines": [describe(server) for server in servers],
        "missing": list(missing),
    }


def baseline(ours: Sequence[MeasuredServer], server: MeasuredServer) -> str | None:
    """The format of planish with which a peer is compared: the first of as many bits."""
    if server.is_planish:
        return None
    return next((one.format for one in ours if one.bits == server.bits), ours[0].format)


def rate_of(crowds: Sequence[Crowd]) -> float:
    return statistics.median(crowd.rate for crowd in crowds)


def describe(server: MeasuredServer) -> dict[str, Any]:
    """What is reported of a server beside its rows."""
    return {
        "engine": server.name,
        "format": server.format,
        "version": server.version,
        "mode": server.mode,
    }


def crowd_row(
    title: str,
    server: MeasuredServer,
    crowds: Sequence[Crowd],
    compared: tuple[int, str | None, float | None],
) -> Row:
    """The row of one server with some clients. compared: how many, with which format, its rate."""
    clients, base, rate = compared
    replies = [reply for crowd in crowds for reply in crowd.replies]
    rates = [crowd.rate for crowd in crowds]
    return Row(
        **common(title, server, [reply.first for reply in replies], clients),
        **spread(rates, [gap for reply in replies for gap in reply.gaps]),
        test=f"serve x{clients}",
        unit="tokens/s",
        again=None,
        ratio=None if rate is None else rate / statistics.median(rates),
        compared_with=base,
    )


def interruption_row(
    title: str, server: MeasuredServer, found: Sequence[Interruption], long: int
) -> Row:
    """The row of a long prompt among others."""
    ratios = [percentile(one.gaps, 99) / percentile(one.gaps, 50) for one in found]
    return Row(
        **common(title, server, [one.first for one in found], AMONG),
        **spread(ratios, [gap for one in found for gap in one.gaps]),
        test=f"pp{long} in {AMONG}",
        unit="p99 gap / median gap",
        again=1e3 * statistics.median(one.again for one in found),
        ratio=None,
        compared_with=None,
    )


def common(
    title: str, server: MeasuredServer, firsts: Sequence[float], clients: int
) -> dict[str, Any]:
    """Who was measured, and how long first tokens took."""
    return {
        "model": title,
        "engine": server.name,
        "format": server.format,
        "mode": server.mode,
        "version": server.version,
        "clients": clients,
        "threads": count_threads(),
        "first_p50": 1e3 * percentile(firsts, 50),
        "first_p99": 1e3 * percentile(firsts, 99),
    }


def spread(values: Sequence[float], gaps: Sequence[float]) -> dict[str, Any]:
    """The rounds' median and extremes, and the gaps of all rounds."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "runs": len(values),
        "gap_p50": 1e3 * percentile(gaps, 50),
        "gap_p99": 1e3 * percentile(gaps, 99),
        "gap_high": 1e3 * max(gaps, default=0.0),
    }


def percentile(values: Sequence[float], percent: float) -> float:
    """0 if there are none."""
    return float(np.percentile(np.asarray(values), percent)) if len(values) else 0.0
