"""Routers near a tie: an engine may choose either of two experts that score alike, and no other."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.compare.conformance import report, routing
from planish.compare.conformance.fast_engine import fast_engine
from planish.compare.conformance.perturbation import IN_FLOATS, MOST
from planish.reference.files.load import Checkpoint, load_weights, open_checkpoint
from planish.reference.model import transformer
from tests.compare.conftest import GOLDENS, cut
from tests.compare.mutations import Changed

MIXTURE = GOLDENS / "mixtral-window-untied"
NEARER = np.float32(1 + 2e-6)  # a tie falls the other way by this, and no weight moves by 1e-5


@pytest.fixture(scope="module")
def config():
    return open_checkpoint(MIXTURE).config


def test_rows_far_from_a_tie_have_one_choice(config):
    assert routing.find_legal_choices(config, np.array([[3.0, 2, 1, 0]], np.float32), 1e-5) == {}


def test_the_last_of_the_chosen_and_the_first_left_out_may_change_places(config):
    scores = np.array([[3, 1, 1 + 1e-6, 0], [3, 2, 1, 0]], np.float32)
    (choices,) = routing.find_legal_choices(config, scores, 1e-5).values()
    assert sorted(sorted(map(int, choice)) for choice in choices) == [[0, 1], [0, 2]]


def test_two_that_are_both_chosen_are_no_tie(config):
    scores = np.array([[2, 2, 1, 0]], np.float32)
    assert routing.find_legal_choices(config, scores, 1e-5) == {}


def test_three_alike_for_one_place(config):
    scores = np.array([[5, 1, 1, 1]], np.float32)
    (choices,) = routing.find_legal_choices(config, scores, 1e-5).values()
    assert sorted(sorted(map(int, choice)) for choice in choices) == [[0, 1], [0, 2], [0, 3]]


def test_each_choice_gives_what_the_reference_would_give(config):
    block = load_weights(open_checkpoint(MIXTURE)).blocks[0]
    n = np.random.default_rng(0).standard_normal((5, config.hidden_size), np.float32)
    scores = n @ np.asarray(block.mlp.router.weight).T
    chosen = transformer.route(config, scores)[1]
    found = routing.mix_choices(config, block.mlp, n, {row: [chosen[row]] for row in range(5)})
    expected = transformer.mixture(config, block.mlp, n)
    np.testing.assert_allclose(np.concatenate(list(found.values())), expected, 1e-5, 1e-6)


def test_the_nearest_option_is_expected_and_no_other_row_changes():
    expected, found = np.zeros((2, 3)), np.array([[9.0, 9, 9], [5, 5, 5]])
    options = {1: np.array([[0.0, 0, 0], [4, 4, 4]])}
    settled = routing.take_nearest(expected, found, options)
    np.testing.assert_array_equal(settled, [[0, 0, 0], [4, 4, 4]])


def with_routers(target: Path, first: float) -> Checkpoint:
    """The golden mixture, each router's second expert scored as `first` times its first one."""
    shutil.copytree(MIXTURE, target)
    path = target / "model.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if name.endswith("block_sparse_moe.gate.weight"):
            tensors[name] = tensors[name].copy()
            tensors[name][1] = tensors[name][0] * np.float32(first)
    save_file(tensors, path)
    return cut(open_checkpoint(target))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return with_routers(tmp_path_factory.mktemp("mixtures") / "tied", 1)


def other_routers(subject, change):
    """A subject whose modules have other routers, though the judge shows them the tied ones."""

    def turned(experts):
        weight = change(np.array(experts.router.weight))
        return replace(experts, router=replace(experts.router, weight=weight))

    def of_experts(run, config, experts, x):
        return run(config, turned(experts), x)

    def of_block(run, config, block, x):
        return run(config, replace(block, mlp=turned(block.mlp)), x)

    changes = {"route": of_experts, "mixture": of_experts, "block": of_block}
    return replace(subject, modules=Changed(subject.modules, **changes))


def second_nearer(weight):
    weight[1] *= NEARER
    return weight


def tokens_of(checkpoint):
    return report.draw_tokens(checkpoint.config.vocab_size, 40)


def test_the_prompt_meets_ties(tied):
    walk = report.Walk(
        config=tied.config,
        weights=load_weights(tied),
        subject=fast_engine(tied),
        levels=(3,),
    )
    _, trace = walk.check_blocks(tokens_of(tied), lambda items, title: items)
    assert trace.router_ties > 10
    allowed = report.choose_tolerances(walk, trace, in_floats=True)
    assert IN_FLOATS.largest < allowed.largest <= MOST.largest


@pytest.mark.whole
def test_an_engine_that_chooses_the_other_of_two_nearly_equal_experts_agrees(tied, tmp_path):
    other = with_routers(tmp_path / "other", NEARER)
    subject = other_routers(fast_engine(tied), second_nearer)
    subject = replace(subject, model=fast_engine(other).model, steps=fast_engine(other).steps)
    found = subject.modules.route(tied.config, *experts_and_rows(tied))[1]
    expected = fast_engine(tied).modules.route(tied.config, *experts_and_rows(tied))[1]
    assert (np.sort(found) != np.sort(expected)).any()  # it does choose others
    result = report.run(tied, tokens_of(tied), levels=(2, 3), subject=subject)
    assert result.agree, result.table()


def experts_and_rows(checkpoint):
    experts = load_weights(checkpoint).blocks[0].mlp
    width = checkpoint.config.hidden_size
    return experts, np.random.default_rng(3).standard_normal((64, width), np.float32)


@pytest.mark.whole
def test_an_engine_that_chooses_a_far_expert_differs(tied):
    subject = other_routers(fast_engine(tied), lambda weight: weight[::-1].copy())
    result = report.run(tied, tokens_of(tied), levels=(2,), subject=subject)
    failed = {check.part for check in result.checks if not check.agrees}
    assert {"routing weights of 40 rows", "mixture", "block"} <= failed
