"""The picture of a search."""

import pytest

pytest.importorskip("matplotlib")

from planish.figures import trail

TRIALS = [
    {"name": "W4A16", "bits": 4.1, "loss": 0.02, "error": 0.001, "within": False},
    {"name": "W4A16 + 3 wider", "bits": 4.6, "loss": -0.001, "error": 0.001, "within": True},
]
LINEARS = [
    {"layer": layer, "part": part, "cost": cost, "widened": widened}
    for layer, part, cost, widened in [
        (0, "q", 1e-3, True),
        (0, "o", 0.0, False),
        (1, "q", 1, False),
    ]
]


@pytest.mark.matrix(4)
@pytest.mark.parametrize("metric", ["perplexity", "kl"])
@pytest.mark.parametrize("tolerance", [0.01, None])
def test_every_recipe_and_the_result_are_drawn(tmp_path, metric, tolerance):
    """Recipes by name; a loss below 0 has a place on the logarithmic axis too."""
    values = {"metric": metric, "tolerance": tolerance, "trials": TRIALS, "chosen": TRIALS[1]}
    trail.draw({**values, "linears": LINEARS}, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "<svg" in text and f"{metric} loss against float" in text
    assert "W4A16 " in text and "bits a weight" in text
