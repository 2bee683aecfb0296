"""Flags that change nothing are said in one line, flags that contradict each other refused."""

from __future__ import annotations

import pytest

from planish.command import parse

GENERATE = ("generate", "--engine", "reference", "--prompt", "ab", "--max_new_tokens", 1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed", 3, "--top_p", 0.9], "--seed, --top_p: no effect at temperature 0"),
        (["--seed=0", "--top_k=0"], "--seed, --top_k: no effect at temperature 0"),
        (["--kernels", "xla"], "--kernels: no effect with --engine reference"),
        (
            ["--seed", 1, "--compilation_cache", "x", "--kernels", "auto"],
            (
                "--seed: no effect at temperature 0; "
                "--compilation_cache, --kernels: no effect with --engine reference"
            ),
        ),
        (["--temperature", 0.5, "--seed", 1], ""),
        (["--ignore_eos"], "--ignore_eos: no effect on a model without eos token"),
        (["--max_new_tokens", 0, "--stop", "a"], "--stop: no effect without new tokens"),
        (["--seed", 3, "--seed", 3, "--temperature", 1], ""),
        (
            ["--seed", 3, "--seed", 4, "--temperature", 1],
            "--seed: given more than once, the last counts",
        ),
        (["--prompt", "x", "--stop", "a", "--stop", "b"], ""),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_flags_without_effect_are_said_in_one_line_and_the_run_goes_on(
    planish, make_llama, words, line
):
    words = GENERATE[:-2] + tuple(words) if "--max_new_tokens" in words else (*GENERATE, *words)
    result = planish(*words, "--model", make_llama(eos_token_id=None))
    assert result.code == 0 and result.out.endswith("\n")
    assert result.err.splitlines()[:-1] == ([line] if line else [])  # the last: figures


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generate", "--engine", "reference", "--kernels", "native"], ["--kernels native"]),
        (["bench", "--recipes", "W4A8"], ["--recipes", "is for --shape"]),
        (["bench", "--directory", "never"], ["--directory", "is for --shape"]),
        (["inspect", "--architectures"], ["not allowed with"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_flags_that_contradict_each_other_are_refused(planish, tiny_llama, words, expected):
    assert planish(*words, "--model", tiny_llama).refused(*expected)


def test_a_flag_of_a_model_is_refused_without_one_even_at_its_default(planish):
    words = ("inspect", "--architectures", "--kernels", "auto")
    assert planish(*words).refused("--kernels", "is for --model, not for --architectures")


def test_inspect_without_kernels_needs_no_cache_for_them(planish, tiny_llama, tmp_path):
    words = ("--kernels", "xla", "--compilation_cache", tmp_path / "cache")
    result = planish("inspect", "--model", tiny_llama, *words)
    assert result.err == ""  # it says where programs are kept


def test_a_notice_is_not_said_beside_an_error(planish, tiny_llama):
    words = ("--seed", 3, "--top_p", 2)
    assert planish(*GENERATE, *words, "--model", tiny_llama).refused("top_p")


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["generate", "--prompt", "--- title"], "prompt", ["--- title"]),
        (["generate", "--prompt", "--seed"], "prompt", ["--seed"]),
        (["generate", "--prompt", "--"], "prompt", ["--"]),
        (["generate", "--prompt", "a=b --seed=2"], "prompt", ["a=b --seed=2"]),
        (["generate", "--prompt="], "prompt", [""]),
        (["generate", "--stop", "-->", "--stop", "--stop"], "stop", ["-->", "--stop"]),
        (["generate", "--prompt_file", "-a", "--prompt_file=--b"], "prompt_file", ["-a", "--b"]),
        (["logits", "--tokens", "-1,2", "--out", "-x.npy"], "tokens", "-1,2"),
        (["generate", "--compilation_cache", "--cache", "--seed", "2"], "seed", 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_the_word_behind_a_flag_is_its_value_though_it_begins_with_dashes(words, name, value):
    assert getattr(parse(["planish", *words, "--model", "m"]), name) == value


def test_a_flag_is_no_value_of_a_flag_that_takes_a_file(planish):
    result = planish("generate", "--model", "m", "--prompt_file", "--seed", 3)
    assert result.refused("--prompt_file", "expected one argument")


def test_every_prompt_file_is_a_prompt(planish, tiny_llama, tmp_path):
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(file.name)
    words = ("generate", "--engine", "reference", "--model", tiny_llama, "--max_new_tokens", 3)
    expected = planish(*words, "--prompt", "a", "--prompt", "b").out
    result = planish(*words, "--prompt_file", files[0], "--prompt_file", files[1])
    assert result.out == expected and "prompt 2 tokens" in result.err


def test_vectors_says_that_a_seed_has_no_effect_on_a_check(planish, tmp_path):
    result = planish("vectors", "--check", tmp_path, "--seed", 3)
    assert "--seed: no effect with --check" in result.err


def test_compare_joins_its_prompt_files(planish, tiny_llama, tmp_path, monkeypatch):
    class Report:
        agree = True

        def table(self) -> str:
            return "AGREE"

    def keep(checkpoint, tokens, *rest, **options):
        taken.extend(tokens)
        return Report()

    taken: list[int] = []
    monkeypatch.setattr("planish.compare.conformance.report.run", keep)
    files = [tmp_path / name for name in ("a", "b")]
    for file in files:
        file.write_text(file.name)
    words = ("--prompt_file", files[0], "--prompt_file", files[1], "--kernels", "xla")
    assert planish("compare", "--model", tiny_llama, *words).code == 0
    assert taken == [64, 65]  # one token per byte, from "!" on
