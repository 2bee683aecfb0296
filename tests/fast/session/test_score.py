"""Scores of continuations: those of each whole sequence, though the context is computed once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.fast.model import losses as fast_losses
from planish.fast.session.engine import Engine
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint
from planish.reference.text import evaluate

GOLDEN = Path(__file__).parents[2] / "golden"
CONTEXT = [7, 101, 33, 9, 250, 66, 14, 90, 3, 3, 41]
CONTINUATIONS = ([5], [77, 12, 200, 9, 9, 31, 64, 2, 118], [77, 13])


@pytest.fixture(params=["reference", "xla", "native"])
def make_engine(request):
    """Every engine, in every form."""
    if request.param == "reference":
        return ReferenceEngine
    if request.param == "native":
        request.getfixturevalue("kernels")
    return lambda checkpoint: Engine(checkpoint, native=request.param == "native")


def check(engine, context, continuations):
    """Against the losses and the logits of whole sequences, each computed from its start."""
    scores = engine.score(context, continuations)
    for continuation, found in zip(continuations, scores, strict=True):
        whole, count = [*context, *continuation], len(continuation)
        assert found.losses == pytest.approx(engine.losses(whole)[-count:], abs=3e-5)
        likeliest = engine.forward(whole)[-count - 1 : -1].argmax(axis=-1) == continuation
        np.testing.assert_array_equal(found.likeliest, likeliest)


@pytest.mark.matrix(10, 3)
@pytest.mark.parametrize("kv_cache", ["float32", "int8"])
def test_scores_are_those_of_whole_sequences(make_engine, tiny_llama, kv_cache):
    checkpoint = open_checkpoint(tiny_llama)
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, kv_cache=kv_cache))
    engine = make_engine(checkpoint)
    check(engine, CONTEXT, CONTINUATIONS)
    check(engine, CONTEXT[:1], CONTINUATIONS[:1])


@pytest.mark.matrix(3)
def test_the_likeliest_continuation_is_greedy(make_engine, tiny_llama):
    engine, context = make_engine(open_checkpoint(tiny_llama)), list(CONTEXT)
    for _ in range(3):
        context.append(int(engine.forward(context)[-1].argmax()))
    (found,) = engine.score(CONTEXT, [context[len(CONTEXT) :]])
    assert found.likeliest.all()


@pytest.mark.whole
def test_context_and_continuation_longer_than_a_chunk(make_engine, make_llama, monkeypatch):
    checkpoint = open_checkpoint(make_llama(max_position_embeddings=1300))
    for module in (fast_losses, evaluate):  # a few logits at a time
        monkeypatch.setattr(module, "LOGITS", 100 * checkpoint.config.vocab_size)
    tokens = (np.arange(1250) * 37 % 250).tolist()
    check(make_engine(checkpoint), tokens[:600], [tokens[600:], tokens[3:5]])


@pytest.mark.matrix(10, 3)
@pytest.mark.parametrize("name", ["llama-dynamic-rope", "phi3-longrope-partial"])
def test_angles_that_depend_on_the_length_are_each_sequences(make_engine, name):
    """A continuation beyond the length where other angles begin does not change a shorter one."""
    checkpoint = open_checkpoint(GOLDEN / name)
    tokens = (np.arange(140) * 37 % 250).tolist()
    end = checkpoint.config.max_positions - len(CONTEXT)
    check(make_engine(checkpoint), CONTEXT, [tokens[:3], tokens[: min(end, 140)]])


def test_what_does_not_fit_is_refused(make_engine, tiny_llama):
    engine = make_engine(open_checkpoint(tiny_llama))
    for context, continuation in (([], [1]), ([1], []), ([1], [10**6]), ([1] * 100, [1] * 30)):
        with pytest.raises(PromptError):
            engine.score(context, [continuation])


@pytest.mark.matrix(3)
def test_the_last_token_needs_no_position(make_engine, tiny_llama):
    engine = make_engine(open_checkpoint(tiny_llama))  # of 128 positions
    tokens = (np.arange(129) * 37 % 250).tolist()
    (found,) = engine.score(tokens[:100], [tokens[100:]])
    expected = evaluate.target_losses(engine.forward(tokens[:128])[99:], tokens[100:])
    assert found.losses == pytest.approx(expected, abs=3e-5)


def test_the_context_is_computed_once(kernels, tiny_llama, monkeypatch):
    engine, ran = Engine(open_checkpoint(tiny_llama), native=True), []
    run = engine.programs.run_model

    def watch(function, **arguments):
        ran.append((function.__name__, arguments["tokens"].shape))
        return run(function, **arguments)

    monkeypatch.setattr(engine.programs, "run_model", watch)
    engine.score(CONTEXT, CONTINUATIONS[::2])
    assert ran == [("prefill", (1, 12)), ("scores", (1, 8)), ("scores", (1, 8))]
