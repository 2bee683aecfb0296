"""The whole judge on models that are right: it says so, in words, in JSON, whatever the recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from planish.compare.conformance import report
from planish.compare.conformance.perturbation import IN_FLOATS, LEAST
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint
from tests.compare.conftest import RECIPES, quantize_into
from tests.models import make_llama

SAME_PROGRAMS = [  # recipes that differ only in what is in the weights, and compile but once
    ["float"],
    ["W8A8", "naive-W8A8"],
    ["O1"],
    ["O2", "naive"],
    ["O3"],
    ["W8A16"],
    ["W4A16"],
    ["W4A8", "W4A8-absmax", "W4A8-absmax7", "W4A8-minmax"],
    ["W4A8-per_token"],
]


def test_no_recipe_is_left_out():
    judged = {name for group in SAME_PROGRAMS for name in group}
    judged |= {"W4A16-mixed", "O3-static"}  # test_mixed.py, test_int8_attention.py
    assert judged == set(RECIPES)


@pytest.mark.optimized(17)
@pytest.mark.whole(3)
@pytest.mark.parametrize("names", SAME_PROGRAMS, ids=lambda names: names[0])
def test_every_recipe_of_a_llama_agrees(judge, names, native):
    for name in names:
        levels = (1, 2) if name in ("O1", "W8A16", "W4A8-per_token") else (1, 2, 3)
        result = judge("llama", name, levels, native)
        assert result.agree, f"{name}: {result.first_mismatch}"
        assert result.first_mismatch is None
        assert {check.level for check in result.checks} == set(levels)


@pytest.mark.optimized(17)
@pytest.mark.whole(5)
@pytest.mark.parametrize("names", SAME_PROGRAMS, ids=lambda names: names[0])
def test_every_recipe_of_an_opt_agrees(judge, names, native):
    for name in names:
        whole = name in ("float", "O3")
        result = judge("opt", name, (1, 2, 3) if whole else (1, 2), native)
        assert result.agree, f"{name}: {result.first_mismatch}"


@pytest.mark.whole(3)
@pytest.mark.parametrize("name", ["float", "W8A8", "O2"])
def test_an_int8_cache_agrees(judge, name, native):
    result = judge("llama", name, (2, 3), native, "int8")
    assert result.agree, str(result.first_mismatch)
    parts = {(check.level, check.part) for check in result.checks}
    assert {(2, "keys in the cache, codes"), (2, "values in the cache, scale")} <= parts
    assert {(3, "keys in the cache"), (3, "values in the cache")} <= parts


@pytest.mark.whole
def test_an_int8_cache_of_a_model_with_biases_agrees(judge, native):
    result = judge("opt", "float", (2, 3), native, "int8")
    assert result.agree, str(result.first_mismatch)


@pytest.mark.whole
def test_an_int8_cache_is_judged_more_sharply_where_only_it_is_on_a_grid(judge):
    def allowed(*arguments: str) -> float:
        checks = judge("llama", arguments[0], [3], False, arguments[1]).checks
        return next(item.tolerance for item in checks if item.part == "keys in the cache")

    floats, cached, codes = (
        allowed(*case) for case in (("float", "float32"), ("float", "int8"), ("W8A8", "int8"))
    )
    assert floats == IN_FLOATS.slot < cached < LEAST.slot <= codes


@pytest.mark.whole
@pytest.mark.parametrize("name", ["float", "W8A8"])
def test_a_prompt_longer_than_a_chunk_agrees(tmp_path: Path, kernels, name, native):
    path = make_llama(tmp_path, num_hidden_layers=1, max_position_embeddings=640)
    path = path if name == "float" else quantize_into(path, tmp_path / name, name)
    result = report.run(open_checkpoint(path), levels=[3], native=native)
    assert result.agree, str(result.first_mismatch)
    parts = {check.part for check in result.checks}
    assert {"prefill of 513", "decode at slot 511 of 512"} <= parts
    assert result.figures is not None and result.figures.tokens == 600


@pytest.mark.matrix(2)
@pytest.mark.again
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_kernels_are_bit_identical_on_every_instruction_set(judge, kernels, family):
    for name in ("W8A8", "W4A8"):
        result = judge(family, name, [1], native=True)
        assert result.kernels == tuple(kernels)
        for part in ("q", "down"):
            for isa in kernels:
                parts = [f"{part}, {rows} rows, {isa}" for rows in (1, 7, 23)]
                parts += [f"{part}, hard rows, codes times scale, {isa}"]
                found = [check for check in result.checks if check.part in parts]
                assert [check.max_error for check in found] == [0.0] * 4


def test_what_kernels_do_in_one_call_is_seen_part_by_part(judge):
    result = judge("llama", "W8A8", [2], native=True)
    exact = [
        check for check in result.checks if " after " in check.part and "codes" not in check.part
    ]
    order = [f"{part} after its norm" for part in ("q", "k", "v", "gate", "up")]
    order.insert(3, "o and the residual after attention")
    assert [check.part for check in exact] == [*order, "down and the residual after the mlp"]
    assert {(check.tolerance, check.max_error) for check in exact} == {(0.0, 0.0)}


def test_the_last_position_of_a_short_model_is_reached(judge):
    assert "decode at slot 63 of 64" in {
        check.part for check in judge("llama", "float", [3]).checks
    }


def test_every_part_of_a_block_is_named(judge):
    parts = [check.part for check in judge("llama", "W8A8", [2]).checks]
    order = ["attention_norm", "q", "k", "v", "attention", "o", "mlp_norm"]
    order += ["gate", "up", "mlp", "down", "block"]
    assert [part for part in parts if part in order] == order


def test_the_verdict_names_the_levels_that_were_not_judged(judge):
    assert judge("llama", "W8A8", [2]).verdict().endswith("on 1 level; not judged: 1 ops, 3 model")
    assert judge("llama", "float").verdict().endswith("on 3 levels")


def test_the_report_is_a_table_and_json(judge):
    result = judge("llama", "float")
    lines = result.table().splitlines()
    assert lines[-1].startswith("AGREE: ")
    assert all(len(line) < 140 for line in lines)
    values = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert values["agree"] is True
    assert values["first_mismatch"] is None
    assert [row["layer"] for row in values["layers"]] == [None, 0, None, 0, None, 0]
    assert values["kernels"] == []
    assert {"max_error", "ulps", "off_by_one", "cosine"} <= set(values["layers"][0])


@pytest.mark.whole
def test_the_report_names_the_kernels(subjects, kernels):
    result = report.run(subjects("llama", "W8A8"), [1, 2, 3], levels=[1], native=True)
    assert result.agree, str(result.first_mismatch)
    assert result.as_dict()["kernels"] == kernels
    assert f"(kernels: {', '.join(kernels)})" in result.table().splitlines()[0]
    assert sum(check.part.startswith("INT4, activations") for check in result.checks) > 40


def test_fewer_levels_are_fewer_checks(judge):
    result = judge("llama", "float", [1])
    assert {check.level for check in result.checks} == {1}
    assert result.figures is None
    assert "on 1 level" in result.table()


@pytest.mark.whole
def test_one_token_is_a_prompt(subjects):
    assert report.run(subjects("llama", "float"), [7]).agree


@pytest.mark.parametrize("tokens", [[], [300], [-1]])
def test_an_impossible_prompt_is_refused(subjects, tokens):
    with pytest.raises(PromptError):
        report.run(subjects("llama", "float"), tokens)


def test_the_same_tokens_are_drawn_each_time():
    assert report.draw_tokens(300, 5) == report.draw_tokens(300, 600)[:5]
