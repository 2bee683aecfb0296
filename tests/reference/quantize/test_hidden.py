"""Hidden states: the same arrays in memory and on the disk, and never more than the budget."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

from planish.reference.quantize.hidden import Store
from planish.reference.quantize.observe import ABSMAX
from planish.reference.quantize.runner import NUMPY_RUNNER


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((rows, 8)).astype(np.float32) for rows in (4, 3, 4, 1)]


@pytest.mark.parametrize("budget", [None, 0, 130, 10**6])
def test_what_goes_in_comes_out_in_order(arrays, tmp_path, budget):
    states = Store(budget, tmp_path).new()
    states.extend(arrays)
    assert len(states) == 4
    for _ in range(2):  # more than once
        assert all(np.array_equal(a, b) for a, b in zip(states, arrays, strict=True))
    assert np.array_equal(states[-1], arrays[-1])
    assert [len(x) for x in states[1:3]] == [3, 4]


def test_reading_and_appending_may_alternate(arrays, tmp_path):
    states = Store(0, tmp_path).new()
    for count, x in enumerate(arrays, 1):
        states.append(x)
        assert len(states) == count and np.array_equal(states[-1], x)
        assert np.array_equal(states[0], arrays[0])


def test_memory_is_taken_up_to_the_budget_and_returned(arrays, tmp_path):
    store = Store(4 * 8 * 4 + 3 * 8 * 4, tmp_path)
    first, second = store.new(), store.new()
    first.extend(arrays[:2])
    assert store.used == store.budget and not first.files
    second.append(arrays[2])
    assert second.files and store.used == store.budget
    del first
    gc.collect()
    assert store.used == 0
    second.append(arrays[3])
    assert store.used == arrays[3].nbytes


def test_the_file_has_no_name(arrays, tmp_path):
    states = Store(0, tmp_path).new()
    states.extend(arrays)
    assert os.fstat(states.files[0].fileno()).st_nlink == 0
    assert list(tmp_path.iterdir()) == []


def test_a_runner_stores_what_it_computes(loaded, samples, tmp_path):
    checkpoint, weights = loaded["llama"]
    store = Store(0, tmp_path)
    disk = NUMPY_RUNNER.storing(store)
    found, expected = (
        one.embed(checkpoint.config, weights, samples) for one in (disk, NUMPY_RUNNER)
    )
    for block in weights.blocks:
        a, found = disk.observe(checkpoint.config, block, found)
        b, expected = NUMPY_RUNNER.observe(checkpoint.config, block, expected)
        assert all(np.array_equal(a[name], b[name]) for name in b)
    found = disk.run(checkpoint.config, weights.blocks[0], found)
    expected = NUMPY_RUNNER.run(checkpoint.config, weights.blocks[0], expected)
    assert all(np.array_equal(x, y) for x, y in zip(found, expected, strict=True))
    assert store.used == 0
    _, nothing = disk.observe(
        checkpoint.config, weights.blocks[0], found, observer=ABSMAX, parts={"q"}
    )
    assert len(nothing) == 0
