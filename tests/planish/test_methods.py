"""python -m planish.methods: rows that are kept, resumed and printed."""

from __future__ import annotations

import json

import pytest

from planish import methods


@pytest.fixture
def run(tiny_llama, tmp_path, capsys):
    """run("--methods", ...) on the tiny model: exit code, stdout and stderr."""
    text = tmp_path / "text.txt"
    text.write_text("Words to calibrate on, and a few more to measure. " * 20, encoding="utf-8")
    short = ("--calibration", text, "--validation_tokens", "128", "--samples", "2")
    one = ("--recipes", "W4A16", "--group_sizes", "32", "--kernels", "xla")

    def call(*words):
        given = ("--models", tiny_llama, *short, *one, "--rows", tmp_path / "rows.json", *words)
        code = methods.main([*map(str, given)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.mark.whole
def test_a_later_run_measures_only_what_is_missing(run, tmp_path):
    code, out, err = run("--methods", "rtn", "--rules", "signed")
    assert code == 0 and err.count("-rtn: 0.") == 1
    assert "| W4A16 g=32 signed | 0.0" in out and "perplexity in float" in out
    first = json.loads((tmp_path / "rows.json").read_text())["rows"]
    code, out, err = run("--methods", "rtn,gptq", "--rules", "signed")
    assert code == 0 and "-rtn: 0." not in err and err.count("-gptq: 0.") == 1
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert rows[:1] == first and [row["method"] for row in rows] == ["rtn", "gptq"]
    assert all(0 < row["kl"] < 0.1 and 50 < row["top1"] <= 100 for row in rows)
    assert "| | rtn | gptq |" in out
    words = ("--methods", "rtn,gptq,awq", "--rules", "signed", "--print_only")
    assert run(*words)[1] == out
    code, out, err = run("--methods", "awq", "--rules", "signed", "--print_only")
    assert (code, out) == (2, "") and "rows: has no row of this grid" in err


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--methods", "gtpq"), "gtpq"),
        (("--rules", "sined"), "sined"),
        (("--group_sizes", "x"), "group_sizes: bad value; expected numbers, as 32,128, found 'x'"),
        (("--seeds", "0"), "seeds: bad value"),
        (("--models", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_line(run, words, problem):
    code, out, err = run(*words)
    assert code == 2 and not out
    assert err.startswith("error: ") and problem in err and err.count("\n") == 1
