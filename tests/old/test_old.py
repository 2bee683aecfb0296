"""Directories that planish 0.1.0 wrote still load, and compute what they computed.

Each holds the logits of 0.1.0's reference (make.py). The reference gives the same bit for bit on
one machine; elsewhere a BLAS that adds in another order may turn a code, hence the tolerance.
"""

from pathlib import Path

import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import forward

DIRECTORIES = sorted(path.parent for path in Path(__file__).parent.glob("*/config.json"))
TURNED_CODES = 0.02  # of the logits' standard deviation: what a few codes off by one can do


@pytest.fixture(params=DIRECTORIES, ids=lambda path: path.name)
def old(request):
    with np.load(request.param / "logits.npz") as stored:
        return open_checkpoint(request.param), stored["tokens"], stored["logits"]


def error(found, expected):
    return np.abs(found - expected).max() / np.std(expected)


def test_there_are_three_old_directories():
    assert len(DIRECTORIES) == 3


def test_the_reference_computes_what_it_computed(old):
    checkpoint, tokens, expected = old
    found = forward(checkpoint.config, load_weights(checkpoint), tokens)
    assert error(found, expected) <= TURNED_CODES


@pytest.mark.matrix(6)
@pytest.mark.parametrize("native", [False, True])
def test_the_engine_computes_what_the_reference_computed(old, native, kernels):
    checkpoint, tokens, expected = old
    found = Engine(checkpoint, native).forward(list(map(int, tokens)))
    assert error(found, expected) <= TURNED_CODES
