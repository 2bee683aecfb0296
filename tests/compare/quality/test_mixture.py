"""Mixtures: what is measured is what is written, in bits, in schemes and in codes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.compare.quality.assemble import write_mixture
from planish.compare.quality.judge import prepare_judge
from planish.compare.quality.ladder import W8A16
from planish.compare.quality.mixture import Mixture
from planish.compare.quality.size import bits_per_weight, scheme_bits
from planish.compare.quality.trial import Goal, Study, make_base, model_bytes
from planish.reference.engine import Engine
from planish.reference.files.load import load_block, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.weights import block_linears
from planish.reference.quantize.recipe import recipe
from planish.reference.scheme import int4, int8

GOLDEN = Path(__file__).parents[2] / "golden"
WINDOWS = [[5, 9, 70, 33, 8, 120, 64, 7], [90, 4, 4, 61, 12, 99, 3, 17]]


@pytest.fixture
def study_of(tmp_path):
    def make(path):
        source = open_checkpoint(path)
        ids = np.random.default_rng(0).integers(0, min(250, source.config.vocab_size), (4, 24))
        return Study(
            source=source,
            samples=list(ids),
            judge=prepare_judge(source, WINDOWS),
            goal=Goal(),
            directory=tmp_path,
            sensitivity=lambda *_: [],
        )

    return make


@pytest.mark.parametrize(
    ("scheme", "expected"),
    [
        (int4(32), 4 * 64 * 96 + 16 * 64 * 3),
        (int4(32, symmetric=False), 4 * 64 * 96 + 24 * 64 * 3),
        (int4(128, scale_dtype="float32"), 4 * 64 * 96 + 32 * 64),
        (int4(-1), 4 * 64 * 96 + 16 * 64),
        (int8(), 8 * 64 * 96 + 32 * 64),
        (int8("per_tensor"), 8 * 64 * 96 + 32),
        (int8("per_tensor", "static"), 8 * 64 * 96 + 64),
    ],
)
def test_bits_of_a_linear_are_those_of_codes_scales_and_zero_points(scheme, expected):
    assert scheme_bits(scheme, 64, 96) == expected


def test_bits_a_weight_of_a_mixture(study_of, tiny_llama):
    """6 linears of 64 columns and down of 96 in each of 2 layers; q is made INT8, o float."""
    base = make_base(study_of(tiny_llama), recipe("W4A16", group_size=32), "a")
    plain = Mixture(base=base)
    assert bits_per_weight(plain) == pytest.approx(4.5)
    mixed = Mixture(base=base, changes={(0, "q"): W8A16, (1, "o"): None})
    weights = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64)
    more = 64 * 64 * (8 - 4.5) + 32 * 64 + 64 * 64 * (32 - 4.5)
    assert bits_per_weight(mixed) == pytest.approx(4.5 + more / weights)
    assert model_bytes(mixed) - model_bytes(plain) == more / 8


def test_a_quantized_head_counts(study_of, tiny_llama):
    base = make_base(study_of(tiny_llama), recipe("W4A16", group_size=32, head="int8"), "a")
    weights, head = 2 * (64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64), 300 * 64
    bits = 4.5 * weights + 8 * head + 32 * 300
    assert bits_per_weight(Mixture(base=base)) == pytest.approx(bits / (weights + head))


CHANGES = {(0, "q"): W8A16, (0, "down"): None, (1, "v"): W8A16, (1, "up"): None}


@pytest.mark.matrix(6)
@pytest.mark.parametrize("layout", ["tiles", "canonical"])
@pytest.mark.parametrize("name", ["W4A16-g32", "W4A16-g32-alpha0.5", "W4A16-g32-awq"])
def test_what_is_written_is_what_was_measured(study_of, tiny_llama, tmp_path, name, layout):
    """The directory's logits are those of the mixture in memory, to the bit."""
    study = replace(study_of(tiny_llama), layout=layout)
    base = make_base(study, recipe(name), "a")
    mixed = Mixture(base=base, changes=CHANGES)
    with CheckpointWriter(tmp_path / "out", tiny_llama) as writer:
        writer.add_text("quantization_report.md", "why")
        write_mixture(mixed, writer)
    written = open_checkpoint(tmp_path / "out")
    assert (tmp_path / "out" / "quantization_report.md").read_text() == "why"
    assert written.layout == layout
    for (layer, part), scheme in mixed.schemes.items():
        assert written.scheme(part, layer) == scheme
    expected, found = (study.judge.measure(w) for w in (mixed.weights(), load_weights(written)))
    np.testing.assert_array_equal(found.nll, expected.nll)
    assert np.isfinite(Engine(written).forward(WINDOWS[0])).all()


def test_a_base_without_changes_is_copied(study_of, tiny_llama, tmp_path):
    base = make_base(study_of(tiny_llama), recipe("W4A8", group_size=32), "a")
    with CheckpointWriter(tmp_path / "out", tiny_llama) as writer:
        write_mixture(Mixture(base=base), writer)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "a" / file).read_bytes()


def test_widening_everything_is_the_wider_recipe(study_of, tiny_llama):
    """All linears at INT8 are W8A16 by RTN; also behind AWQ's scales they compute nearly that."""
    study = study_of(tiny_llama)
    wide = make_base(study, recipe("W8A16"), "wide")
    plain, awq = (make_base(study, recipe(n), n) for n in ("W4A16-g32", "W4A16-g32-awq"))
    changes = dict.fromkeys(plain.schemes, W8A16)
    for layer in range(2):
        expected = block_linears(load_block(wide.quantized, layer))
        found = block_linears(Mixture(base=plain, changes=changes).block(layer))
        for part, linear in expected.items():
            np.testing.assert_array_equal(found[part].weight.codes, linear.weight.codes)
    kl = study.judge.measure(Mixture(base=awq, changes=changes).weights()).kl.mean()
    assert kl < study.judge.measure(Mixture(base=awq).weights()).kl.mean() / 50


def test_experts_are_widened_together(study_of, tmp_path):
    study = study_of(GOLDEN / "mixtral-two-of-four")
    base = make_base(study, recipe("W4A16", group_size=32), "a")
    mixed = Mixture(base=base, changes={(0, "experts.down"): W8A16, (1, "q"): W8A16})
    with CheckpointWriter(tmp_path / "out", study.source.path) as writer:
        write_mixture(mixed, writer)
    written = open_checkpoint(tmp_path / "out")
    assert written.scheme("experts.down", 0) == W8A16
    assert written.scheme("experts.up", 0) == int4(32)
    expected, found = (study.judge.measure(w) for w in (mixed.weights(), load_weights(written)))
    np.testing.assert_array_equal(found.nll, expected.nll)
    assert bits_per_weight(mixed) > bits_per_weight(Mixture(base=base))


def test_a_mixture_runs_in_tiles_too(study_of, tiny_llama):
    mixed = Mixture(
        base=make_base(study_of(tiny_llama), recipe("W4A16-g32"), "a"), changes={(0, "q"): W8A16}
    )
    weight = mixed.block(0, tiled=True).q.weight
    assert weight.layout == "tiles" and weight.scheme == W8A16
