"""The whole judge on models that are right: it says so, in words, in JSON, whatever the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compare import report
from reference.checkpoint import open_checkpoint
from reference.errors import PromptError
from tests.compare.conftest import RECIPES, quantized
from tests.models import make_llama

SAME_PROGRAMS = [  # recipes that differ only in what is in the weights, and compile but once
    ["float"],
    ["W8A8"],
    ["O1"],
    ["O2", "naive"],
    ["O3"],
    ["W8A16"],
    ["W4A16"],
    ["W4A8", "W4A8-absmax", "W4A8-absmax7", "W4A8-minmax"],
    ["W4A8-per_token"],
]


def test_no_recipe_is_left_out():
    assert sorted(name for group in SAME_PROGRAMS for name in group) == sorted(RECIPES)


@pytest.mark.parametrize("names", SAME_PROGRAMS, ids=lambda names: names[0])
def test_every_recipe_of_a_llama_agrees(judge, names):
    for name in names:
        levels = (1, 2) if name in ("O1", "W8A16", "W4A8-per_token") else (1, 2, 3)
        result = judge("llama", name, levels)
        assert result.agree, f"{name}: {result.first_mismatch}"
        assert result.first_mismatch is None
        assert {check.level for check in result.checks} == set(levels)


@pytest.mark.parametrize("names", SAME_PROGRAMS, ids=lambda names: names[0])
def test_every_recipe_of_an_opt_agrees(judge, names):
    for name in names:
        whole = name in ("float", "O3")
        result = judge("opt", name, (1, 2, 3) if whole else (1, 2))
        assert result.agree, f"{name}: {result.first_mismatch}"


@pytest.mark.parametrize("name", ["float", "W8A8"])
def test_a_prompt_longer_than_a_chunk_agrees(tmp_path: Path, name):
    path = make_llama(tmp_path, num_hidden_layers=1, max_position_embeddings=640)
    path = path if name == "float" else quantized(path, tmp_path / name, name)
    result = report.run(open_checkpoint(path), levels=[3])
    assert result.agree, str(result.first_mismatch)
    parts = {check.part for check in result.checks}
    assert {"prefill of 513", "decode at slot 511 of 512"} <= parts
    assert result.figures is not None and result.figures.tokens == 600


def test_the_last_position_of_a_short_model_is_reached(judge):
    assert "decode at slot 63 of 64" in {
        check.part for check in judge("llama", "float", [3]).checks
    }


def test_every_part_of_a_block_is_named(judge):
    parts = [check.part for check in judge("llama", "W8A8", [2]).checks]
    order = ["attention_norm", "q", "k", "v", "attention", "o", "mlp_norm"]
    order += ["gate", "up", "mlp", "down", "block"]
    assert [part for part in parts if part in order] == order


def test_the_report_is_a_table_and_json(judge):
    result = judge("llama", "float")
    lines = result.table().splitlines()
    assert lines[-1].startswith("AGREE: ")
    assert all(len(line) < 140 for line in lines)
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values["agree"] is True
    assert values["first_mismatch"] is None
    assert [row["layer"] for row in values["layers"]] == [None, 0, None, 0, None, 0]
    assert {"max_error", "ulps", "off_by_one", "cosine"} <= set(values["layers"][0])


def test_fewer_levels_are_fewer_checks(judge):
    result = judge("llama", "float", [1])
    assert {check.level for check in result.checks} == {1}
    assert result.figures is None
    assert "on 1 level" in result.table()


def test_one_token_is_a_prompt(subjects):
    assert report.run(subjects("llama", "float"), [7]).agree


@pytest.mark.parametrize("tokens", [[], [300], [-1]])
def test_an_impossible_prompt_is_refused(subjects, tokens):
    with pytest.raises(PromptError):
        report.run(subjects("llama", "float"), tokens)


def test_the_same_tokens_are_drawn_each_time():
    assert report.random_tokens(300, 5) == report.random_tokens(300, 600)[:5]
