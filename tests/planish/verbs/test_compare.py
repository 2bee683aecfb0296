"""compare: the verdict is its exit code."""

from __future__ import annotations

from planish.compare.conformance import report


def test_compare_agrees_on_a_float_model(planish, one_layer, monkeypatch):
    """Without what needs no model, which test_kernels.py and test_report.py run."""
    monkeypatch.setattr(report.Walk, "check_without_model", lambda walk: [])
    result = planish("compare", "--model", one_layer, "--json")
    assert result.code == 0
    assert result.only_json()["agree"] is True


def test_compare_exits_with_3_where_engines_differ(planish, tiny_llama, monkeypatch):
    class Report:
        agree = False

        def table(self) -> str:
            return "DIFFER"

    monkeypatch.setattr(
        "planish.compare.conformance.report.run", lambda *arguments, **options: Report()
    )
    result = planish("compare", "--model", tiny_llama)
    assert (result.code, result.out) == (3, "DIFFER\n")


def test_compare_refuses_a_bad_prompt_file(planish, tiny_llama, tmp_path):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    result = planish("compare", "--model", tiny_llama, "--prompt_file", bad)
    assert result.refused("bad.txt", "UTF-8")
