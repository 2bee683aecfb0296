"""The search: the first within tolerance, else a mixture, else the best; or a budget, filled."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from planish.compare.quality import auto, mixed
from planish.compare.quality.auto import Search
from planish.compare.quality.judge import prepare_judge
from planish.compare.quality.order import AUTO_RECIPES, Candidate, candidates
from planish.compare.quality.trial import Goal, Study, Trial
from planish.fast.quantize.sensitivity import measure_sensitivity
from planish.reference.errors import RecipeError
from planish.reference.files.load import open_checkpoint
from planish.reference.model.weights import block_linears
from planish.reference.quantize.methods import METHODS
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import dequantize

GOLDEN = Path(__file__).parents[2] / "golden"
WINDOWS = [list(range(start, start + 24)) for start in (5, 60, 120, 180)]
TWO = ("W4A16", "W4A16-g32-minmax")


def weight_errors(config, weights, alternatives, samples, progress):
    """Sensitivities by the error of the weights alone, which need no gradients."""
    found = []
    for layer, block in enumerate(weights.blocks):
        floats, levels = block_linears(block), alternatives(layer)
        costs = {
            part: np.array(
                [
                    np.square(dequantize(level[part].weight) - floats[part].weight).sum()
                    for level in levels
                ]
            )
            for part in levels[0]
        }
        found.append({p: SimpleNamespace(cost=c, error=c) for p, c in costs.items()})
    return found


@pytest.fixture
def study(tiny_llama, tmp_path):
    source = open_checkpoint(tiny_llama)
    return Study(
        source=source,
        samples=[np.arange(3, 40, dtype=np.int32)],
        judge=prepare_judge(source, WINDOWS),
        goal=Goal(metric="kl", tolerance=1e-3),
        directory=tmp_path,
        sensitivity=weight_errors,
    )


def search(study, names=TWO, **goal):
    rows = []
    study = replace(study, goal=replace(study.goal, **goal))
    tried = [Candidate(name=name, recipe=recipe(name)) for name in names]
    outcome = Search(study=study, show=rows.append).run(tried)
    assert rows == outcome.trials
    return outcome


def test_the_first_recipe_within_the_tolerance_ends_the_search(study):
    outcome = search(study, tolerance=10.0)
    assert [trial.name for trial in outcome.trials] == ["W4A16"]
    assert outcome.chosen.trial.within


def test_mixed_precision_meets_a_tolerance_that_no_recipe_meets(study):
    outcome = search(study)
    first, second, *mixtures = outcome.trials
    assert not first.within and not second.within
    chosen = outcome.chosen.trial
    assert chosen.within and chosen.bound <= 1e-3 and chosen in mixtures
    assert chosen.bits == min(trial.bits for trial in outcome.trials if trial.within)
    assert first.bits < chosen.bits < 16


def test_one_step_fewer_would_miss_or_spare_little(study, monkeypatch):
    monkeypatch.setattr(mixed, "CLOSE", 0.0)
    outcome = search(study, names=("W4A16-g32",))
    misses = [t for t in outcome.trials if not t.within and "wider" in t.name]
    counts = [int(t.name.split(" + ")[1].split()[0]) for t in misses]
    chosen = int(outcome.chosen.trial.name.split(" + ")[1].split()[0])
    assert max(counts) in (chosen - 1, chosen)  # a step may widen the same linear further


def test_a_tolerance_that_is_missed_gives_the_best_model(study):
    outcome = search(study, tolerance=1e-9, budget=8.0)
    assert not outcome.chosen.trial.within
    assert outcome.chosen.trial.bound == min(trial.bound for trial in outcome.trials)
    assert outcome.chosen.trial.bits <= 8.0


def test_a_budget_is_filled_with_wider_linears(study):
    outcome = search(study, tolerance=None, budget=5.5)
    chosen = outcome.chosen.trial
    assert 5.0 < chosen.bits <= 5.5
    assert chosen.bound == min(trial.bound for trial in outcome.trials)
    assert not chosen.within


def test_recipes_beyond_the_budget_are_left_out(study):
    outcome = search(study, tolerance=None, budget=4.5)  # minmax at g=32 has 4.75
    assert list(outcome.left_out) == ["W4A16-g32-minmax"]
    assert outcome.chosen.trial.bits <= 4.5
    with pytest.raises(RecipeError, match="method auto: no recipe .* budget of 4.1 bits"):
        search(study, tolerance=None, budget=4.1)


def test_candidates_that_others_beat_leave_no_files(study):
    outcome = search(study, names=("W4A16-g32", "W4A16-g32-minmax", "W4A16-g64"), tolerance=1e-9)
    beaten = [
        one.name
        for one in outcome.trials
        if any(auto.beats(other, one) for other in outcome.trials if "wider" not in other.name)
    ]
    left = {path.name for path in study.directory.iterdir()}
    assert left == {"W4A16-g32", "W4A16-g32-minmax", "W4A16-g64"} - set(beaten)


def test_the_report_knows_every_linear(study):
    outcome = search(study, names=("W4A16-g32",))
    assert len(outcome.sensitivities) == 2 * 7
    widened = outcome.chosen.model.changes
    assert widened and set(widened) <= set(outcome.sensitivities)


def test_only_the_best_family_is_tried_again(study):
    names = {"W4A16-g64": "a", "W4A16": "b", "W4A16-g32": "a", "W4A16-minmax": "b"}
    tried = [Candidate(name=n, recipe=recipe(n), family=f) for n, f in names.items()]
    goal = replace(study.goal, tolerance=1e-9, budget=4.6)
    found = Search(study=replace(study, goal=goal), show=lambda trial: None).run(tried)
    rows = {t.name: t.bound for t in found.trials if "wider" not in t.name}
    better = "a" if rows["W4A16-g64"] < rows["W4A16"] else "b"
    again = [name for name, family in list(names.items())[2:] if family == better]
    assert list(rows) == ["W4A16-g64", "W4A16", *again]


@pytest.mark.whole
def test_experts_are_widened_by_their_gradients(tmp_path):
    """The real sensitivities; a layer's experts stay quantized, and share a scheme."""
    source = open_checkpoint(GOLDEN / "mixtral-two-of-four")
    vocabulary = source.config.vocab_size
    ids = np.random.default_rng(0).integers(0, vocabulary, (4, 24))
    study = Study(
        source=source,
        samples=list(ids[:2]),
        judge=prepare_judge(source, [list(map(int, row)) for row in ids[2:]]),
        goal=Goal(metric="kl", tolerance=0.01),
        directory=tmp_path,
        sensitivity=measure_sensitivity,
    )
    tried = [Candidate(name="W4A16-g32", recipe=recipe("W4A16-g32"))]
    chosen = Search(study=study, show=lambda trial: None).run(tried).chosen
    assert chosen.trial.within
    experts = {k: s for k, s in chosen.model.changes.items() if k[1].startswith("experts.")}
    assert experts and all(scheme is not None for scheme in experts.values())


def make_trial(bits, loss):
    return Trial(
        name="a", bits=bits, size=1, loss=loss, error=0.0, perplexity=1.0, float_perplexity=1.0,
        mean_kl=0.0, top1=1.0, seconds=0.0, within=False,
    )  # fmt: skip


def test_a_trial_beats_another_in_bits_and_loss():
    assert auto.beats(make_trial(4, 0.1), make_trial(5, 0.1))
    assert auto.beats(make_trial(4, 0.1), make_trial(4, 0.2))
    assert not auto.beats(make_trial(4, 0.1), make_trial(4, 0.1))
    assert not auto.beats(make_trial(4, 0.2), make_trial(5, 0.1))


def test_accuracy_asks_a_score_of_the_model(study):
    seen = []

    def score(model):
        seen.append(model)
        return np.ones(8) if model is None else np.array([1, 1, 1, 1, 1, 1, 1, 0])

    outcome = search(study, metric="accuracy", score=score, tolerance=0.3, names=("W4A16",))
    assert outcome.chosen.trial.loss == 1 / 8
    assert seen[0] is outcome.chosen.model and None in seen


@pytest.mark.parametrize("name", AUTO_RECIPES)
def test_the_order_begins_with_the_fewest_bits_and_names_only_known_methods(name):
    found = list(candidates(name))
    assert found[0].recipe == recipe(name)
    assert len({one.name for one in found}) == len(found)
    trained = ["signround" in one.recipe.methods for one in found]
    assert trained == sorted(trained)  # what trains comes last
    sizes = [one.recipe.default.group_size for one in found[: trained.count(False)]]
    assert sizes == sorted(sizes, reverse=True)
    assert all(method in METHODS for one in found for method in one.recipe.methods)


def test_changes_hold_for_every_candidate():
    found = list(candidates("W4A8", activation="per_token", head="int8", ignore=("q_proj",)))
    for one in found:
        assert one.recipe.default.activation == "per_token"
        assert one.recipe.schemes[0] == ("q_proj", None)


@pytest.mark.parametrize("name", ["naive", "float", "W4A16-g32", "W5A16"])
def test_a_recipe_without_an_order_is_refused(name):
    with pytest.raises(RecipeError, match="recipe: cannot be searched; expected one of W4A16"):
        list(candidates(name))


def test_the_bases_of_mixtures_are_those_that_need_the_fewest_bits(study):
    names = ("W4A16", "W4A16-g64", "W4A16-g32", "W4A16-g32-minmax")
    goal = replace(study.goal, tolerance=1e-3)
    searched = Search(study=replace(study, goal=goal), show=lambda trial: None)
    tried = [Candidate(name=name, recipe=recipe(name)) for name in names]
    outcome = searched.run(tried)
    mixed_names = {t.name.split(" + ")[0] for t in outcome.trials if "wider" in t.name}
    promises = {one.trial.name: searched.promise(one) for one in searched.kept}
    assert len(promises) > len(mixed_names) == auto.BASES
    assert mixed_names == set(sorted(promises, key=promises.__getitem__)[: auto.BASES])


def test_a_prediction_is_between_the_base_and_its_widest_mixture(study):
    searched = Search(study=study, show=lambda trial: None)
    base = searched.attempt(Candidate(name="W4A16-g32", recipe=recipe("W4A16-g32")))
    steps = searched.steps(base)
    wide = mixed.bits_after(base.model.base, steps, len(steps))
    assert base.trial.bits < mixed.predict_bits(study, base, steps) < wide
    few = replace(study, goal=replace(study.goal, tolerance=None, budget=6.0))
    many = replace(study, goal=replace(study.goal, tolerance=None, budget=9.0))
    few_loss, many_loss = (mixed.predict_loss(one, base, steps) for one in (few, many))
    assert 0 <= many_loss < few_loss < base.trial.bound
