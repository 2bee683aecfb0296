"""Which norm feeds which linears: written out for each form, and as 0.1.0's tables had it.

folds.json holds what each architecture's own table said of its goldens, before it was derived.
"""

import json
from pathlib import Path

import pytest

from planish.reference.files.load import open_checkpoint
from planish.reference.model.folds import Fold, folds

HERE = Path(__file__).parent
GOLDEN = HERE.parents[1] / "golden"
TABLES = json.loads((HERE / "folds.json").read_text())

FORMS = [
    (
        "llama-tied-grouped",  # pre-norm, gated
        (Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("gate", "up"))),
    ),
    (
        "gpt2-hub-prefix",  # pre-norm, not gated
        (Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("up",))),
    ),
    (
        "gpt_neox-parallel",  # parallel, two norms
        (Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("up",))),
    ),
    ("falcon-7b-form", (Fold("attention_norm", ("q", "k", "v", "up")),)),  # parallel, one norm
    (
        "stablelm-12b-form",  # parallel, one norm, gated
        (Fold("attention_norm", ("q", "k", "v", "gate", "up")),),
    ),
    ("opt-350m-form", ()),  # post-norm
    ("olmo2-grouped", ()),  # norms of outputs only
    (
        "gemma2-caps",  # sandwich
        (Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("gate", "up"))),
    ),
    (
        "qwen3-norms",  # norms of queries and keys, which linears do not read
        (Fold("attention_norm", ("q", "k", "v")), Fold("mlp_norm", ("gate", "up"))),
    ),
    (
        "qwen3_moe-some-layers",  # a mixture in some layers, a plain MLP in others
        (
            Fold("attention_norm", ("q", "k", "v")),
            Fold("mlp_norm", ("router", "experts.gate", "experts.up", "gate", "up")),
        ),
    ),
]


@pytest.mark.parametrize(("name", "expected"), FORMS)
def test_the_folds_of_a_form_follow_from_its_config(name, expected):
    assert folds(open_checkpoint(GOLDEN / name).config) == expected


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_every_golden_has_the_folds_that_its_architecture_listed(table):
    for name in TABLES[table]:
        found = folds(open_checkpoint(GOLDEN / name).config)
        assert "; ".join(f"{f.source}: {' '.join(f.linears)}" for f in found) == table, name


def test_every_golden_is_in_the_tables():
    listed = {name for names in TABLES.values() for name in names}
    assert listed == {path.parent.name for path in GOLDEN.glob("*/config.json")}
