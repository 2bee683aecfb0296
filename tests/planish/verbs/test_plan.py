"""planish plan: bytes of a node, whether they fit, and seconds of a step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planish.compare.bench.gathers import MANY, derive, mean_gathered
from planish.compare.bench.planning import (
    SHAPES,
    Machines,
    Use,
    count_cache,
    count_gathered,
    count_layer,
    count_weights,
    plan_shape,
    step_seconds,
)
from planish.compare.bench.roofline import count_token_bytes
from planish.reference.files.load import open_checkpoint

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


def test_stages_read_one_after_the_other_and_hand_over():
    shape, use = SHAPES["110M"], Use(context=1)
    one = step_seconds(shape, "W8A8", use, ONE)
    slow = replace(ONE, nodes=3, stages=3, handover=2e-3, overhead=1e-4)
    found = step_seconds(shape, "W8A8", use, slow)
    assert found["reading"] == one["reading"] and found["gathering"] == 0
    assert found["overheads"] == pytest.approx(12e-4)
    assert found["handing"] == pytest.approx(6e-3 + 2 * 4 * 768 / 1e8)
    assert found["step"] == pytest.approx(one["step"] + found["overheads"] + found["handing"])


def test_a_node_of_a_stage_has_its_layers_and_the_last_one_lm_head():
    machines = replace(ONE, nodes=4, stages=2)
    found = plan_shape(SHAPES["1.1B"], "W8A8", Use(), machines)
    layer = count_layer(SHAPES["1.1B"], "W8A8", 2)
    assert found["weights"] == 11 * layer + 32000 * 2048 * 4 / 2
    assert found["kv_cache"] == count_cache(SHAPES["1.1B"], Use(), 2) / 2
    small = plan_shape(SHAPES["1.1B"], "W8A8", Use(lm_head="int8"), machines)
    assert found["weights"] - small["weights"] == 16000 * (2048 * 3 - 4)


def test_the_figures_of_a_model_give_its_measured_steps_back(make_llama):
    checkpoint = open_checkpoint(make_llama())
    read, layers = count_token_bytes(checkpoint), checkpoint.config.num_layers
    parts, steps = 2, 4 * layers + 1
    overhead, latency, handover, network = 2e-4, 1e-4, 3e-4, 5e7

    def whole(batch):
        return batch * read / 1e9 + layers * overhead

    def tensor(batch):
        moved = batch * mean_gathered(checkpoint.config) / 2 / network
        return batch * read / 1e9 / parts + layers * overhead + steps * (latency + moved)

    found = {"bandwidth": 1e9, "whole": whole(1), "tensor": tensor(1)}
    found |= {f"whole_{MANY}": whole(MANY), f"tensor_{MANY}": tensor(MANY)}
    derived = derive(found | {"pipeline": whole(1) + parts * handover}, checkpoint, parts)
    assert derived["overhead"] == pytest.approx(overhead)
    assert derived["handover"] == pytest.approx(handover)
    assert derived["network"] == pytest.approx(network)
    moved = mean_gathered(checkpoint.config) / 2 / network
    assert derived["latency"] == pytest.approx(latency + moved)


def test_what_noise_made_negative_is_0(make_llama):
    checkpoint = open_checkpoint(make_llama())
    names = ("whole", "tensor", "pipeline", f"whole_{MANY}", f"tensor_{MANY}")
    found = derive({"bandwidth": 1e3} | dict.fromkeys(names, 1e-3), checkpoint, 2)
    assert found["overhead"] == found["handover"] == 0
    assert found["network"] > 0


@pytest.mark.whole
def test_two_processes_are_measured(planish):
    found = planish("plan", "--measure", "2", "--json").only_json()
    assert found["bandwidth"] > 0 and found["whole"] > 0
    assert {"overhead", "latency", "network", "handover"} <= found.keys()


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
        ("--batch", "9" * 400),
        ("--context", "-1"),
        ("--efficiency", "1.5"),
        ("--overhead", "-1"),
        ("--handover", "soon"),
        ("--pipeline", "0"),
        ("--nodes", "2,3", "--pipeline", "2"),
        ("--measure", "1"),
        ("--measure", "100000"),
        ("--memory", "0"),
    ],
)
def test_bad_values_are_one_line(planish, words):
    assert planish("plan", *words).refused(words[0])
