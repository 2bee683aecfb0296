"""planish plan: bytes of a node, whether they fit, and seconds of a step."""

from __future__ import annotations

import pytest

from planish.compare.bench.gathers import fit_line
from planish.compare.bench.planning import (
    SHAPES,
    Machines,
    Use,
    count_cache,
    count_gathered,
    count_weights,
    plan_shape,
    step_seconds,
)

ONE = Machines(nodes=1, memory=1e12, bandwidth=1e9, network=1e8, latency=1e-3)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("70B", 69), ("175B", 175), ("405B", 406), ("530B", 530)],
)
def test_a_shape_has_the_weights_of_its_name(name, billions):
    size = SHAPES[name].size
    floats = count_weights(SHAPES[name], "float32", 1) / 4 + size.vocab * size.hidden
    assert floats / 1e9 == pytest.approx(billions, rel=0.01)


def test_w8a8_has_a_byte_a_weight_and_nodes_share_them():
    shape = SHAPES["1.1B"]
    linears = 22 * (2 * 2048 * 2048 + 2 * 256 * 2048 + 3 * 5632 * 2048)
    scales = 22 * (2 * 2048 + 2 * 256 + 2 * 5632 + 2048) * 4
    whole = linears + scales + 32000 * 2048 * 4
    assert count_weights(shape, "W8A8", 1) == whole
    assert count_weights(shape, "W8A8", 2) == whole / 2


def test_heads_that_do_not_divide_keep_the_whole_cache():
    use = Use(batch=2, context=100)
    whole = 2 * 22 * 4 * 2 * 100 * 64 * 4
    assert count_cache(SHAPES["1.1B"], use, 4) == whole / 4
    assert count_cache(SHAPES["1.1B"], use, 8) == whole
    int8 = Use(batch=2, context=100, kv_cache="int8")
    assert count_cache(SHAPES["1.1B"], int8, 1) == whole * 68 / 256


def test_a_step_reads_a_share_and_waits_for_its_gathers():
    shape, use = SHAPES["110M"], Use(context=1)
    gathers, gathered = count_gathered(shape, use)
    assert gathers == 4 * 12 + 1
    assert gathered == 4 * (12 * (3 * 768 + 2048) + 32000)
    one = step_seconds(shape, "W8A8", use, ONE)
    assert one["gathering"] == 0 and one["step"] == one["reading"]
    two = Machines(nodes=2, memory=1e12, bandwidth=1e9, network=1e8, latency=1e-3)
    both = step_seconds(shape, "W8A8", use, two)
    assert both["reading"] == pytest.approx(one["reading"] / 2)
    assert both["gathering"] == pytest.approx(49e-3 + gathered / 2 / 1e8)


def test_what_does_not_fit_says_so():
    small = Machines(nodes=1, memory=100, bandwidth=1e9, network=1e8, latency=0)
    assert not plan_shape(SHAPES["110M"], "W8A8", Use(), small)["fits"]
    assert plan_shape(SHAPES["110M"], "W8A8", Use(), ONE)["fits"]


def test_a_line_through_measured_gathers():
    latency, rate = fit_line({1000: 1e-3, 101000: 2e-3}, 2)
    assert latency == 1e-3 and rate == pytest.approx(50000 / 1e-3)


def test_the_verb_prints_a_row_for_each_recipe_and_count(planish):
    words = ("--shape", "530B", "--memory", "512G", "--bandwidth", "300G", "--network", "100G")
    done = planish("plan", *words, "--nodes", "1,2")
    rows = [line for line in done.out.splitlines() if line.startswith("| 530B")]
    assert done.code == 0 and len(rows) == 4
    assert "| W8A8 | 1 |" in rows[0] and "| no |" in rows[0]
    assert "| W8A8 | 2 |" in rows[1] and "| yes |" in rows[1]
    assert "arXiv 2211.10438" in done.out
    found = planish("plan", *words, "--nodes", "2", "--json").only_json()["rows"]
    assert [row["fits"] for row in found] == [True, True]


@pytest.mark.parametrize(
    "words",
    [
        ("--shape", "9B"),
        ("--recipes", "W1A1"),
        ("--nodes", "0"),
        ("--nodes", "two"),
        ("--bandwidth", "fast"),
        ("--latency", "0"),
        ("--batch", "0"),
        ("--measure", "1"),
    ],
)
def test_bad_values_are_one_line(planish, words):
    assert planish("plan", *words).refused(words[0])
