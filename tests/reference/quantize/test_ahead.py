"""Blocks on threads: the order, the number ahead, the first error, and the same bytes."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.ahead import map_ahead
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.runtime import NUMPY


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_results_come_in_order_and_count_is_how_many_are_ahead(count):
    begun, most = [], []

    def double(x):
        begun.append(x)
        return 2 * x

    for position, result in enumerate(map_ahead(double, range(20), count)):
        assert result == 2 * position
        most.append(len(begun) - position - 1)  # begun, of those not taken yet
    assert sorted(begun) == [*range(20)] and max(most) <= count


def test_two_are_computed_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    assert [*map_ahead(lambda _: both.wait() >= 0, range(4), 2)] == [True] * 4


def test_an_error_comes_in_its_turn_and_nothing_is_begun_after_it():
    begun, taken = [], []

    def fail_at_2(x):
        begun.append(x)
        return 1 // (2 - x)

    with pytest.raises(ZeroDivisionError):
        taken.extend(map_ahead(fail_at_2, range(100), 2))
    assert taken == [0, 1] and max(begun) <= 4


def write(source, target, ahead):
    chosen, runtime = recipe("W4A16", group_size=32), replace(NUMPY, ahead=ahead)
    with CheckpointWriter(target, source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, chosen, runtime=runtime)
    return (target / "model.safetensors").read_bytes()


def test_a_model_is_the_same_to_the_byte(make_llama, tmp_path):
    model = make_llama(num_hidden_layers=5)
    found = [write(model, tmp_path / f"q{ahead}", ahead) for ahead in (1, 2, 7)]
    assert found[0] == found[1] == found[2]


def test_of_two_bad_blocks_the_first_is_named(make_llama, tmp_path):
    model = make_llama(num_hidden_layers=4)
    tensors = load_file(model / "model.safetensors")
    for layer in (3, 1, 2):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"][3, 5] = np.inf
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlanishError, match=r"layers\.1\."):
        write(model, tmp_path / "q", 2)
    assert [path.name for path in tmp_path.iterdir() if "q" in path.name] == []
