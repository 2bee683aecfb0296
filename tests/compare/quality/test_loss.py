"""What a tolerance is of: literal small numbers."""

import math

import numpy as np
import pytest

from planish.compare.quality.loss import Loss, task_loss, text_loss
from planish.compare.quality.trial import Goal
from planish.reference.errors import PromptError
from planish.reference.text.evaluate import Comparison

FLOAT = np.array([1.0, 3.0, 2.0, 2.0])


def compare(nll, kl=(0, 0, 0, 0), same=(True, True, True, True)):
    return Comparison(float_nll=FLOAT, nll=np.array(nll), kl=np.array(kl), same=np.array(same))


def test_perplexity_is_the_relative_increase_paired_token_by_token():
    """The same difference on every token: the loss is known exactly, though nll itself is not."""
    loss = text_loss("perplexity", compare(FLOAT + 0.02))
    assert loss.value == pytest.approx(math.exp(0.02) - 1)
    assert loss.error == pytest.approx(0, abs=1e-12)
    uneven = text_loss("perplexity", compare(FLOAT + np.array([0.1, -0.1, 0.1, -0.1])))
    assert uneven.value == pytest.approx(0) and uneven.error == pytest.approx(0.1 / 2)


def test_kl_and_top1_are_means_with_their_errors():
    found = compare(FLOAT, kl=[0.01, 0.03, 0.01, 0.03], same=[True, False, True, True])
    assert text_loss("kl", found) == Loss(value=pytest.approx(0.02), error=pytest.approx(0.005))
    top1 = text_loss("top1", found)
    assert top1.value == 0.25
    assert top1.error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_accuracy_is_paired_on_the_same_items():
    """Items that both models get wrong, or right, say nothing of the loss."""
    loss = task_loss(np.array([1, 0, 0, 1]), np.array([1, 0, 1, 1]))
    assert loss.value == 0.25
    assert loss.error == pytest.approx(math.sqrt(0.25 * 0.75 / 4))


def test_a_goal_counts_the_standard_error():
    goal = Goal(tolerance=0.01)
    assert goal.within(Loss(value=0.006, error=0.004))
    assert not goal.within(Loss(value=0.008, error=0.004))
    assert not Goal(tolerance=None, budget=5.0).within(Loss(value=-1, error=0))


def test_a_model_that_gives_nan_is_refused():
    with pytest.raises(PromptError, match="validation: the quantized model gives NaN or Inf"):
        text_loss("kl", compare([1.0, math.nan, 1.0, 1.0]))
