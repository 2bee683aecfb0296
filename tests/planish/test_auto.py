"""planish quantize --method auto: its table, its report, its exit codes, and what it refuses."""

from __future__ import annotations

import json
import math

import pytest

import planish as api
from planish.auto import METRICS as NAMES
from planish.compare.quality import order
from planish.compare.quality.loss import METRICS
from planish.compare.quality.order import Row
from planish.reference.engine import Engine
from planish.reference.files.load import open_checkpoint

FEW = ("--samples", 4, "--validation_tokens", 256, "--kernels", "xla")


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    lines = (f"Line {i}: {i * i} words to calibrate on, and {i % 7} more.\n" for i in range(60))
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture
def auto(planish, tiny_llama, tmp_path, text, monkeypatch):
    """auto("--tolerance", ...) of the tiny model into tmp_path / "q", by two fast recipes."""
    monkeypatch.setitem(order.ORDER, "W4A16", (Row(words=""), Row(words="-g32-minmax")))

    def call(*words):
        where = ("--model", tiny_llama, "--out", tmp_path / "q", "--method", "auto")
        given = () if "--calibration" in words else ("--calibration", text)
        return planish("quantize", *where, *given, *FEW, *words)

    return call


@pytest.mark.whole
def test_a_tolerance_that_is_met_ends_with_a_model_and_its_report(auto, tmp_path):
    result = auto("--tolerance", "0.002", "--metric", "kl")
    assert result.code == 0, result
    assert "| W4A16 | 4." in result.out and "✓" in result.out
    out = tmp_path / "q"
    report = json.loads((out / "quantization_report.json").read_text(encoding="utf-8"))
    assert report["within"] and report["missed_by"] == 0
    assert report["chosen"]["loss"] + report["chosen"]["error"] <= 0.002
    assert len(report["linears"]) == 2 * 7
    assert report["verdict"] in result.out
    page = (out / "quantization_report.md").read_text(encoding="utf-8")
    assert all(trial["name"] in page for trial in report["trials"])
    assert (out / "quantization_report.svg").read_text(encoding="utf-8").lstrip()[:5] == "<?xml"
    logits = Engine(open_checkpoint(out)).forward(list(b"Words to judge by."))
    assert math.isfinite(logits.sum())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q", "text.txt"]


def test_a_tolerance_that_is_missed_writes_the_best_model_and_exits_with_3(auto, tmp_path):
    result = auto("--tolerance", "1e-9", "--budget", "6", "--metric", "kl")
    assert result.code == 3, result
    assert "miss" in result.out
    report = json.loads((tmp_path / "q" / "quantization_report.json").read_text(encoding="utf-8"))
    assert not report["within"] and report["missed_by"] > 0
    assert report["chosen"]["bits"] <= 6
    open_checkpoint(tmp_path / "q")


@pytest.mark.whole
def test_from_python_a_search_gives_the_commands_files_and_returns_its_report(
    auto, tmp_path, tiny_llama, text
):
    assert auto("--tolerance", "0.002", "--metric", "kl", "--ignore", "down_proj").code == 0
    few = {"samples": 4, "validation_tokens": 256, "kernels": "xla", "calibration": text}
    given = {"method": "auto", "tolerance": 0.002, "metric": "kl", "ignore": "down_proj"}
    found = api.quantize(tiny_llama, tmp_path / "p", **few, **given)
    assert found["within"] and found["chosen"]["loss"] <= 0.002
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "p" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
    written = json.loads((tmp_path / "p" / "quantization_report.json").read_text(encoding="utf-8"))
    assert found == written


@pytest.mark.whole
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"tolerance": 0.0}, "tolerance: bad value"),
        ({"group_size": 32}, "group_size: is what --method auto chooses"),
        ({"resume": True}, "resume: is for one recipe"),
        ({"engine": "reference"}, "needs gradients"),
        ({"recipe": "naive"}, "recipe: cannot be searched"),
        ({"metric": "accuracy"}, "needs the items"),
        ({"kernels": "sse9"}, "kernels: unknown"),
    ],
)
def test_from_python_a_search_refuses_the_same(tiny_llama, tmp_path, given, problem):
    with pytest.raises(api.PlanishError, match=problem):
        api.quantize(tiny_llama, tmp_path / "q", method="auto", **given)
    with pytest.raises(TypeError, match="quantize\\(\\) has no tolerence"):
        api.quantize(tiny_llama, tmp_path / "q", method="auto", tolerence=1)
    assert not (tmp_path / "q").exists()


def test_json_is_one_object_and_nothing_else(auto):
    result = auto("--budget", "5", "--json")
    assert result.code == 0, result
    values = json.loads(result.out)
    assert values["tolerance"] is None and values["chosen"]["bits"] <= 5


@pytest.mark.whole
def test_validation_may_be_a_text_of_its_own(auto, tmp_path, text):
    other = tmp_path / "other.txt"
    other.write_text("Quite another text, to measure on. " * 30, encoding="utf-8")
    result = auto("--validation", other, "--tolerance", "1")
    assert result.code == 0, result
    assert f"validation: {other}: 2 x 128 tokens" in result.out
    assert f"calibration: {text}: 4 x 128 tokens" in result.out


@pytest.mark.whole
def test_accuracy_is_of_a_tasks_items(auto, tmp_path, tiny_llama, planish):
    """The last row says what `planish evaluate` says of the model that was written."""
    lines = [json.dumps({"text": f"words to guess, {i} and {i * i}"}) for i in range(12)]
    items = [
        json.dumps({"context": f"line {i}:", "choices": [" a", " b", f" {i}"], "answer": i % 3})
        for i in range(12)
    ]
    task = tmp_path / "task.jsonl"
    task.write_text("\n".join(items), encoding="utf-8")
    result = auto("--metric", "accuracy", "--task", task, "--tolerance", "0.9")
    assert result.code == 0, result
    report = json.loads((tmp_path / "q" / "quantization_report.json").read_text(encoding="utf-8"))
    words = ("--task", task, "--against", tiny_llama, "--json", "--kernels", "xla")
    said = planish("evaluate", "--model", tmp_path / "q", *words).only_json()
    found = said["against"]["differences"]["accuracy"]["value"]
    assert report["chosen"]["loss"] == pytest.approx(-found)
    task.write_text(lines[0] + "\n{", encoding="utf-8")
    (tmp_path / "q").rename(tmp_path / "old")
    refused = auto("--metric", "accuracy", "--task", task)
    assert refused.code == 2 and "line 2" in refused.err


@pytest.mark.whole
def test_without_a_recipe_w4a16_is_meant_and_others_may_be_named(auto, tmp_path):
    assert auto("--recipe", "W8A16", "--tolerance", "1").code == 0
    config = json.loads((tmp_path / "q" / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["recipe"] == "W8A16"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--tolerance 0", "tolerance: bad value; expected more than 0, as 0.01, found 0.0"),
        ("--tolerance -1", "tolerance: bad value"),
        ("--tolerance nan", "tolerance: bad value"),
        ("--budget 4", "budget: bad value; expected more than 4 (scales count) and at most 16"),
        ("--budget 17", "budget: bad value"),
        ("--budget 4.1", "method auto: no recipe fits this model and a budget of 4.1 bits"),
        ("--metric loss", "metric: unknown; expected one of perplexity, kl, top1, accuracy"),
        ("--metric accuracy", "metric accuracy: needs the items of --task FILE"),
        ("--task x.jsonl", "task: is for accuracy only"),
        ("--recipe naive", "recipe: cannot be searched; expected one of W4A16, W4A8"),
        ("--group_size 64", "--group_size: is what --method auto chooses"),
        ("--scheme q_proj=W8A16", "--scheme: is what --method auto chooses"),
        ("--ignore nothing", "ignore: matches nothing in this model"),
        ("--layout rows", "layout: unknown; expected one of tiles, canonical"),
        ("--resume", "--resume: is for one recipe, not for --method auto"),
        ("--engine reference", "--method auto: needs gradients, which only --engine fast has"),
        ("--validation_tokens 1", "validation_tokens: bad value; expected 2 or more, found 1"),
    ],
)
def test_what_a_search_refuses(auto, tmp_path, words, problem):
    result = auto(*words.split())
    assert result.code == 2, result
    assert problem in result.err
    assert not (tmp_path / "q").exists()


def test_a_model_that_is_quantized_is_refused(auto, planish, tiny_llama, tmp_path):
    planish("quantize", "--model", tiny_llama, "--out", tmp_path / "w4", "--recipe", "W4A16")
    words = ("--model", tmp_path / "w4", "--out", tmp_path / "q", "--method", "auto")
    assert planish("quantize", *words).refused("is already quantized; expected a float model")


def test_texts_that_are_too_short_are_refused(auto, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Too short a text.", encoding="utf-8")
    given = auto("--validation", short)
    assert (given.code, "validation: is too short; expected 128 tokens" in given.err) == (2, True)
    given = auto("--calibration", short)
    assert (given.code, "calibration: is too short; expected 512 tokens" in given.err) == (2, True)


def test_flags_of_a_search_are_refused_without_it(planish, tiny_llama, tmp_path):
    words = ("--recipe", "W4A16", "--tolerance", "0.01")
    result = planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q", *words)
    assert result.code == 2 and "--tolerance: is for --method auto" in result.err
    result = planish("quantize", "--model", tiny_llama, "--out", tmp_path / "q")
    assert result.code == 2 and "--recipe: is missing" in result.err


def test_the_command_names_the_metrics_that_there_are():
    assert tuple(METRICS) == NAMES
