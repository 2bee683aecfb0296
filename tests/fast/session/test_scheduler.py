"""Rows that end leave their batch, and dispatches grow: on a clock that the test winds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from planish.fast.session.engine import Engine
from planish.fast.session.scheduler import next_count
from planish.reference.files.load import open_checkpoint
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling
from tests.fast.session.clock import Clock
from tests.models import make_llama

PROMPTS = [[5, 6, 7], [9, 8], [1, 2, 3, 4], [11], [30, 31]]


class Watched(Engine):
    """An engine that notes how many rows and tokens each dispatch computed."""

    def decode_tokens(self, tokens, positions, cache, draw):
        found, cache = super().decode_tokens(tokens, positions, cache, draw)
        self.seen.append((len(tokens), len(found)))
        return found, cache

    def decode_step(self, tokens, positions, cache):
        self.seen.append((len(tokens), 1))
        return super().decode_step(tokens, positions, cache)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(make_llama(tmp_path_factory.mktemp("models")))


@pytest.fixture(params=[False, True], ids=["xla", "native"])
def engine(request, checkpoint, kernels) -> Watched:
    engine = Watched(checkpoint, request.param, clock=Clock(0.001))
    engine.seen = []
    return engine


def generated(
    engine: Engine, prompts: Sequence[list[int]], stop: Stop, sampling: Sampling
) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in engine.generate(prompts, stop, sampling):
        rows[row].append(token)
    return rows


@pytest.mark.whole
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0, seed=5)], ids=["greedy", "drawn"])
def test_a_row_that_goes_on_alone_goes_on_as_before(engine, sampling):
    free = generated(engine, PROMPTS, Stop(60, ignore_eos=True), sampling)
    assert {rows for rows, _ in engine.seen} == {5}
    ends = ending(free)
    engine.config = with_eos(engine.config, ends)
    engine.seen.clear()
    found = generated(engine, PROMPTS, Stop(60), sampling)
    for row, all_tokens in zip(found, free, strict=True):
        assert row == until(all_tokens, ends)
    sizes = [rows for rows, _ in engine.seen]
    assert sizes[0] == 5 and sizes[-1] < 5
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) <= {5, 2, 1}


def until(tokens: list[int], ends: tuple[int, ...]) -> list[int]:
    first = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: first[0]] if first else tokens


def ending(rows: list[list[int]]) -> tuple[int, ...]:
    """Ids that end at least three rows within 20 tokens, and one row not within 40."""
    ends: set[int] = set()
    longest = max(rows, key=lambda row: len(set(row[:40])))
    for row in rows:
        others = [token for token in row[1:20] if token not in longest]
        ends |= set(others[:1])
    return tuple(sorted(ends))


def with_eos(config, ids):
    return replace(config, eos_token_ids=ids)


@pytest.mark.whole
def test_dispatches_grow_while_they_take_no_time(engine):
    generated(engine, [[5, 6]], Stop(60, ignore_eos=True), Sampling())
    assert [count for _, count in engine.seen] == [1, 2, 4, 8, 16, 16, 12]


@pytest.mark.matrix(2)
def test_dispatches_stay_short_where_a_token_takes_long(engine):
    engine.clock = Clock(0.04)
    generated(engine, [[5, 6]], Stop(6, ignore_eos=True), Sampling())
    assert [count for _, count in engine.seen] == [1] * 5


@pytest.mark.parametrize(
    ("count", "seconds", "following"),
    [(1, 1.0, 1), (1, 1e-3, 2), (8, 1e-3, 16), (16, 1e-3, 16), (16, 0.1, 8), (4, 0.05, 4)],
)
def test_the_next_dispatch_takes_a_twentieth_of_a_second(count, seconds, following):
    assert next_count(count, seconds) == following
