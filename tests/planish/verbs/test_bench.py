"""bench: a table, or an object, of tokens per second beside limits."""

from __future__ import annotations

import pytest

from planish.compare.bench.sizes import MODEL_SIZES, ModelSize
from planish.verbs.bench import format_rate


@pytest.fixture
def quick_limits(monkeypatch):
    monkeypatch.setattr("planish.compare.bench.machine.READ_BYTES", 2**21)
    monkeypatch.setattr("planish.compare.bench.machine.ROUNDS", 100)


@pytest.mark.whole
@pytest.mark.parametrize("kernels", ["xla", "auto"])
def test_bench_measures_beside_limits(planish, one_layer, quick_limits, kernels):
    words = ("bench", "--model", one_layer, "--runs", 2, "--kernels", kernels)
    values = planish(*words, "--tests", "pp512,tg128,tg4x3", "--json").only_json()
    assert set(values) == {"rows", "limits", "machine", "engines", "missing"}
    assert [row["test"] for row in values["rows"]] == ["pp128", "tg127", "tg4x3"]
    for row in values["rows"]:
        assert row["runs"] == 2 and 0 < row["low"] <= row["median"] <= row["high"]
        assert row["percent_of_limit"] == pytest.approx(100 * row["median"] / row["limit"])
    assert values["limits"]["memory_read_bytes_per_second"] > 0
    assert values["machine"]["cores"] >= 1


@pytest.mark.whole
def test_bench_makes_random_models_and_names_missing_peers(
    planish, tmp_path, quick_limits, monkeypatch
):
    tiny = ModelSize(name="110M", hidden=64, layers=2, heads=4, kv_heads=2, ffn=96, vocab=300)
    monkeypatch.setitem(MODEL_SIZES, "110M", tiny)
    monkeypatch.setattr("planish.compare.bench.engines.is_installed", lambda peer: False)
    words = (
        "bench",
        "--shape",
        "110M",
        "--recipes",
        "W4A8-g32,W8A8",
        "--tests",
        "tg2",
        "--runs",
        1,
    )
    words += ("--runs", 1, "--peers", "llama.cpp,torch", "--directory", tmp_path / "models")
    result = planish(*words)
    assert result.code == 0
    assert "| 110M | planish | W4A8-g32 |" in result.out and "| tg2 |" in result.out
    assert "not measured: llama.cpp: not installed" in result.out
    assert "pip install torch" in result.out
    assert (tmp_path / "models" / "110M-W8A8" / "config.json").exists()


@pytest.mark.whole
def test_bench_serves_and_measures_what_clients_see(planish, one_layer):
    words = ("bench", "--serve", "--model", one_layer, "--clients", "1,2", "--runs", 1, "--json")
    found = planish(*words).only_json()
    assert [row["test"] for row in found["rows"]][:2] == ["serve x1", "serve x2"]
    assert all(row["median"] > 0 for row in found["rows"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--serve", "--clients", "0"], ["clients", "1 to 256"]),
        (["--serve", "--clients", "8,x"], ["clients", "'8,x'"]),
        (["--serve", "--peers", "torch"], ["peers", "has no server"]),
        (["--serve", "--tests", "pp512"], ["--tests", "is not for --serve"]),
        (["--clients", "8"], ["--clients", "is for --serve"]),
        (["--peers", "lama"], ["peers", "llama.cpp"]),
        (["--tests", "pp"], ["tests", "pp512"]),
        (["--tests", ","], ["tests", "is empty"]),
        (["--tests", "pp512x8"], ["tests", "'pp512x8'"]),
        (["--runs", "0"], ["runs", "1 or more"]),
        (["--shape", "110M"], ["not allowed with"]),
    ],
)
def test_bench_refuses_what_it_cannot_measure(planish, one_layer, words, expected):
    assert planish("bench", "--model", one_layer, *words).refused(*expected)


def test_bench_refuses_an_unknown_recipe_of_a_shape(planish):
    result = planish("bench", "--shape", "110M", "--recipes", "W4A8-gx")
    assert result.refused("recipes", "'W4A8-gx'")
    assert planish("bench", "--shape", "110M", "--recipes", ",").refused("recipes", "is empty")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123, "0.012"), (1.234, "1.23"), (12.34, "12.3"), (6532.4, "6532")]
)
def test_rates_have_the_digits_that_a_measurement_has(value, text):
    assert format_rate(value) == text
