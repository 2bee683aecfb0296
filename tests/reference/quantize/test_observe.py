"""Calibration: the largest magnitude at every linear's input, over all samples, block by block."""

import numpy as np
import pytest

from planish.reference.errors import PromptError, QuantizationError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import (
    ROTATED,
    block_forward,
    empty_cache,
    forward,
    unembed,
)
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.observe import (
    Observer,
    calibrate,
    cut_samples,
    embed_samples,
    fingerprint,
    observe_block,
    run_block,
)
from planish.reference.quantize.recipe import recipe


def test_absmax_is_the_largest_magnitude_over_tokens_and_samples(loaded, samples):
    checkpoint, weights = loaded["llama"]
    config = checkpoint.config
    seen: dict[str, list[np.ndarray]] = {}
    cache = empty_cache(config)
    for x in embed_samples(config, weights, samples):
        past = (cache.keys[0], cache.values[0])
        tap = lambda name, x: seen.setdefault(name, []).append(x)  # noqa: E731
        block_forward(config, weights.blocks[0], x, np.arange(len(x)), past, tap)
    found = calibrate(config, weights, samples)
    assert len(found) == 2 and set(found[0]) == set(seen) - {*ROTATED}
    for name in found[0]:
        inputs = seen[name]
        assert np.array_equal(found[0][name], np.abs(np.concatenate(inputs)).max(axis=0))


def test_samples_are_carried_from_block_to_block(loaded, samples):
    checkpoint, weights = loaded["opt"]
    config, hidden = checkpoint.config, embed_samples(checkpoint.config, weights, samples)
    for block in weights.blocks:
        absmax, hidden = observe_block(config, block, hidden)
    logits = unembed(config, weights, hidden[0])
    assert np.allclose(logits, forward(config, weights, samples[0]), atol=1e-5)
    last = calibrate(config, weights, samples)[-1]
    assert all(np.array_equal(last[name], absmax[name]) for name in absmax)


def test_observing_changes_no_output(loaded, samples):
    checkpoint, weights = loaded["llama"]
    hidden = embed_samples(checkpoint.config, weights, samples)
    _, outputs = observe_block(checkpoint.config, weights.blocks[0], hidden)
    assert np.array_equal(outputs[1], run_block(checkpoint.config, weights.blocks[0], hidden[1]))


def test_another_observer_sees_the_same_inputs(loaded, samples):
    checkpoint, weights = loaded["llama"]
    config, block = checkpoint.config, weights.blocks[0]
    hidden, inputs = embed_samples(config, weights, samples), []
    for x in hidden:
        run_block(config, block, x, lambda name, x: inputs.append(x) if name == "down" else None)
    hessian = Observer(measure=lambda x: x.T @ x, merge=np.add)
    found, _ = observe_block(config, block, hidden, observer=hessian)
    read = np.concatenate(inputs)
    assert found["down"] == pytest.approx(read.T @ read, rel=1e-5, abs=1e-4)
    assert found["q"].shape == (32, 32)


OVERFLOWS = {
    "1.self_attn.q_proj": r"layers\.1\.self_attn\.o_proj: the activations that it reads",
    "0.mlp.gate_proj": r"layers\.0\.mlp\.down_proj: the activations that it reads",
    "1.mlp.down_proj": r"layers\.1: the hidden states that leave it",
}


@pytest.mark.parametrize("name", OVERFLOWS)
@pytest.mark.parametrize(
    "chosen",
    [
        recipe("W8A8"),
        recipe("W8A8", alpha="search"),
        recipe("naive", scheme="O3"),
        recipe("float", alpha=0.5),
    ],
    ids=["smoothed", "searched", "static", "float"],
)
def test_a_float_model_that_overflows_is_an_error_that_names_the_reader(
    tiny, samples, tmp_path, name, chosen
):
    tensors = tiny.tensors(tiny.values())
    tensors[f"model.layers.{name}.weight"] *= np.float32(1e38)
    source = tiny.write(tmp_path / "source", None, tensors)
    with (
        pytest.raises(QuantizationError, match=f"{OVERFLOWS[name]} overflow float32"),
        CheckpointWriter(tmp_path / "out", source) as writer,
    ):
        quantize_checkpoint(open_checkpoint(source), writer, chosen, samples[:2])
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_samples_are_consecutive_windows():
    cut = cut_samples(range(10), count=2, length=3)
    assert [s.tolist() for s in cut] == [[0, 1, 2], [3, 4, 5]]
    assert len(cut_samples(range(10), count=9, length=3)) == 3


def test_a_text_shorter_than_one_sample_is_refused():
    with pytest.raises(PromptError, match="too short; expected at least 512 tokens, found 511"):
        cut_samples(range(511))


@pytest.mark.parametrize(("count", "length"), [(0, 5), (5, 0), (-1, 5)])
def test_at_least_one_sample_of_one_token(count, length):
    with pytest.raises(PromptError, match="calibration: bad value"):
        cut_samples(range(10), count, length)


def test_fingerprint_depends_on_the_tokens_alone(samples):
    found = fingerprint(samples)
    assert (found["samples"], found["length"]) == (4, 24) and len(found["sha256"]) == 64
    assert found == fingerprint([s.astype(np.int32) for s in samples])
    assert found != fingerprint([*samples[:3], samples[0]])


def test_hidden_states_whose_squares_overflow_are_an_error(tiny, samples, tmp_path):
    tensors = tiny.tensors(tiny.values())
    tensors["model.layers.0.mlp.down_proj.weight"] *= np.float32(1e25)  # the next norm gives zeros
    source = tiny.write(tmp_path / "source", None, tensors)
    with (
        pytest.raises(QuantizationError, match="layers.0: the squared hidden states"),
        CheckpointWriter(tmp_path / "out", source) as writer,
    ):
        quantize_checkpoint(open_checkpoint(source), writer, recipe("W8A8"), samples[:2])


def test_a_seed_draws_windows_from_the_whole_text_in_its_order():
    first = [int(one[0]) for one in cut_samples(range(1000), count=5, length=10, seed=3)]
    assert first == sorted(first) and len(set(first)) == 5 and first[-1] >= 50
    assert all(start % 10 == 0 for start in first)
    again = [int(one[0]) for one in cut_samples(range(1000), count=5, length=10, seed=3)]
    other = [int(one[0]) for one in cut_samples(range(1000), count=5, length=10, seed=4)]
    assert first == again != other


def test_a_seed_that_has_nothing_to_choose_takes_all_windows():
    cut = cut_samples(range(12), count=4, length=3, seed=9)
    assert [one.tolist() for one in cut] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
