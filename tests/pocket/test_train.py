"""pocket/train.py without training: the schedule, the windows, and a run that goes on."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.pocket.train import (
    PEAK_RATE,
    TOKENS_PER_STEP,
    WARMUP,
    Progress,
    batches,
    load_progress,
    rate,
    save_progress,
)


def test_the_rate_warms_up_and_has_decayed_when_the_time_is_over() -> None:
    assert rate(0.0) < PEAK_RATE / 100
    assert rate(WARMUP) == pytest.approx(PEAK_RATE)
    assert rate(1.0) == pytest.approx(PEAK_RATE / 20)
    falling = [rate(share) for share in np.linspace(WARMUP, 1, 50)]
    assert falling == sorted(falling, reverse=True)


def test_windows_are_runs_of_the_tokens_one_longer_than_the_sequence() -> None:
    tokens = np.arange(3000, dtype=np.uint16)
    batch = next(batches(tokens, 256, np.random.default_rng(0)))
    assert batch.shape == (TOKENS_PER_STEP // 256, 257) and batch.dtype == np.int32
    assert (np.diff(batch, axis=1) == 1).all()


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4)}}
    progress = Progress(params, (jnp.int32(3), jax.tree.map(jnp.sin, params)), 17, 2.5)
    save_progress(tmp_path / "progress.npz", progress)
    blank = Progress(*jax.tree.map(jnp.zeros_like, (params, progress.state)), 0, 0.0)
    found = load_progress(tmp_path / "progress.npz", blank)
    assert (found.step, found.seconds) == (17, 2.5)
    jax.tree.map(np.testing.assert_array_equal, found, progress)
    assert [p.name for p in tmp_path.iterdir()] == ["progress.npz"]
