"""--kernels, and what inspect says of it."""

from __future__ import annotations

import pytest

from planish.fast.native.instruction_sets import INSTRUCTION_SETS, available

LACKING = next(one.name for one in INSTRUCTION_SETS if one not in available())


@pytest.mark.parametrize("verb", ["inspect", "generate"])
def test_a_set_that_the_processor_lacks_is_an_error_with_those_it_has(planish, tiny_llama, verb):
    words = ("--prompt", "Ab", "--max_new_tokens", 2) if verb == "generate" else ()
    result = planish(verb, "--model", tiny_llama, *words, "--kernels", LACKING)
    assert result.refused(LACKING, "cannot run it", ", ".join(one.name for one in available()))


def test_inspect_says_which_set_was_asked_for(planish, tiny_llama):
    text = planish("inspect", "--model", tiny_llama, "--kernels", "plain").out
    assert "kernels: native plain (" in text


def test_inspect_does_not_say_native_without_the_kernels_sources(
    planish, tiny_llama, tmp_path, monkeypatch
):
    monkeypatch.setattr("planish.fast.native.build.SOURCES", tmp_path)
    text = planish("inspect", "--model", tiny_llama).out
    assert "kernels: xla (" in text and "ffi.cc: the installation lacks this source" in text
    result = planish("inspect", "--model", tiny_llama, "--kernels", "native")
    assert result.refused("ffi.cc", "lacks this source")


def test_inspect_names_the_next_set_where_the_compiler_is_too_old(planish, tiny_llama, monkeypatch):
    monkeypatch.setattr("planish.fast.native.build.is_whole", lambda path: False)
    monkeypatch.setattr("planish.fast.native.build.understands", lambda _, name: name == "plain")
    text = planish("inspect", "--model", tiny_llama).out
    assert "kernels: native plain (" in text and "not yet compiled" in text


def test_inspect_says_which_kernels_are_used_and_why(planish, tiny_llama):
    values = planish("inspect", "--model", tiny_llama, "--json").only_json()
    assert values["kernels"]["use"].split()[0] in ("native", "xla")
    text = planish("inspect", "--model", tiny_llama, "--kernels", "xla").out
    assert "kernels: xla (--kernels xla)" in text


@pytest.mark.whole
def test_without_a_compiler_one_line_says_so_and_the_result_is_the_same(
    planish, tiny_llama, monkeypatch
):
    words = ("generate", "--model", tiny_llama, "--prompt", "Ab", "--max_new_tokens", 6)
    expected = planish(*words, "--kernels", "xla").out
    monkeypatch.setattr("planish.fast.native.library._loaded", [])
    monkeypatch.setattr("planish.fast.native.build.shutil.which", lambda name: None)
    result = planish(*words)
    assert (result.code, result.out) == (0, expected)
    assert result.err.count("no C++ compiler was found") == 1
    assert planish(*words, "--kernels", "native").refused("no C++ compiler was found")
    inspected = planish("inspect", "--model", tiny_llama).out
    assert "kernels: xla (no C++ compiler was found" in inspected


def test_inspect_counts_the_programs_that_are_kept(planish, tiny_llama, tmp_path):
    words = ("inspect", "--model", tiny_llama, "--kernels", "xla", "--compilation_cache")
    assert "batch, and not kept" in planish(*words, "none").out
    programs = planish(*words, tmp_path / "cache", "--json").only_json()["programs"]
    kept = tmp_path / "cache" / "xla"
    assert programs == {"directory": str(kept), "kept": {}, "bytes": 0}
    for name in ("prefill-0a", "prefill-1b", "decode_tokens-ff", "add-0a"):
        (kept / f"jit_{name}-cache").write_bytes(b"12")
    text = planish(*words, tmp_path / "cache").out
    assert f"kept in {kept} (of all models: 1 decode_tokens, 2 prefill, 6 bytes)" in text


@pytest.mark.whole
def test_inspect_finds_the_programs_that_generate_has_compiled(planish, tiny_llama):
    words = ("--model", tiny_llama, "--kernels", "xla")
    assert planish("generate", "--prompt", "a", "--max_new_tokens", "3", *words).code == 0
    programs = planish("inspect", *words, "--json").only_json()["programs"]
    assert {"prefill", "decode_tokens"} <= programs["kept"].keys() and programs["bytes"] > 0


XLA = "planish.fast.xla.products."


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("library", "tiles", "kernels", "words"),
    [
        ("YNNPACK", True, "xla", "xla: multiplies INT8 by YNNPACK, which may use AMX tiles\n"),
        ("YNNPACK", True, "plain", "AMX tiles; the kernels above do not, --kernels xla would\n"),
        ("YNNPACK", False, "plain", "xla: multiplies INT8 by YNNPACK\n"),
        (None, True, "plain", "xla: multiplies INT8 in loops of its own\n"),
    ],
)
def test_inspect_says_what_multiplies_for_xla_and_names_it_where_only_it_has_tiles(
    planish, tiny_llama, monkeypatch, library, tiles, kernels, words
):
    monkeypatch.setattr(XLA + "find_library", lambda program: library)
    monkeypatch.setattr(XLA + "may_use_tiles", lambda: tiles)
    inspected = planish("inspect", "--model", tiny_llama, "--kernels", kernels, "--json")
    facts = inspected.only_json()["xla"]
    assert facts["int8_products"] == (library or "XLA")
    assert facts["tiles"] == (tiles and library is not None)
    assert words in planish("inspect", "--model", tiny_llama, "--kernels", kernels).out


def test_inspect_reads_a_model_where_jax_does_not_work(planish, tiny_llama, monkeypatch):
    def fail() -> None:
        raise RuntimeError("no backend")

    monkeypatch.setattr("planish.process.claim_jax", fail)
    values = planish("inspect", "--model", tiny_llama, "--json").only_json()
    assert values["xla"]["int8_products"] is None and "no backend" in values["xla"]["why"]
    assert "xla: not available (" in planish("inspect", "--model", tiny_llama).out
