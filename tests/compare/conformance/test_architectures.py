"""A golden model of every architecture agrees, in both forms and by both kinds of codes.

The kernels are judged on all three levels. In XLA's form level 1 is left to test_report.py, for
its linears are the same functions whatever the model is, and level 2 calls each of them again on
the rows that the model gives it; level 3 runs with INT8 codes only, for what it sees (the cache,
steps, batches) does not depend on a linear's codes. Its programs take most of the time to compile,
so in XLA's form it runs for one model of each kind of positions, of masks and of experts; INT4
codes run there in one model of each kind of linears: with biases, without, tied, of experts.
Matrix tiles, which multiply prompts only, are emulated and judged on level 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planish.fast.native import library
from planish.reference.architectures import ENTRIES

GOLDENS = (
    "bloom-tied",
    "chatglm-2",
    "falcon-40b-form",
    "falcon-rw-form",
    "gemma2-small-caps",
    "gemma3_text-old-spelling",
    "glm-grouped",
    "glm4-sandwich",
    "gpt2-scaled-by-layer",
    "gpt_bigcode-multi-query",
    "gpt_neox-parallel",
    "gptj-partial-rotary",
    "llama-3-rope",
    "mistral-window",
    "mixtral-window-untied",
    "mpt-clipped-scaled-six-heads",
    "olmo2-grouped",
    "opt-350m-form",
    "phi3-longrope-partial",
    "qwen2-windows-untied",
    "qwen3-biases-window-untied",
    "qwen3_moe-some-layers",
    "smollm3-windows-biases",
    "stablelm-12b-form",
    "starcoder2-window",
)
STEPS_IN_XLA = (
    "bloom-tied",
    "gemma2-small-caps",
    "gemma3_text-old-spelling",
    "gpt2-scaled-by-layer",
    "gptj-partial-rotary",
    "mixtral-window-untied",
    "mpt-clipped-scaled-six-heads",
    "phi3-longrope-partial",
    "smollm3-windows-biases",
)
INT4_IN_XLA = (
    "bloom-tied",
    "chatglm-2",
    "falcon-40b-form",
    "mixtral-window-untied",
    "olmo2-grouped",
    "qwen2-windows-untied",
    "qwen3_moe-some-layers",
)
INT4_CASES = [(name, True) for name in GOLDENS] + [(name, False) for name in INT4_IN_XLA]
TILES_CASES = [
    (name, recipe)
    for i, name in enumerate(GOLDENS)
    for recipe in (("W8A8", "W4A16"), ("W4A8", "W8A16"))[i % 2]
]
NO_FOLDS = ("olmo2-grouped", "opt-350m-form")  # so nothing can be smoothed


def test_every_architecture_is_here():
    assert {name.split("-")[0] for name in GOLDENS} == set(ENTRIES)


@pytest.mark.optimized(13)
@pytest.mark.whole(3)
@pytest.mark.parametrize("name", GOLDENS)
def test_int8_codes_agree(judge, name, native):
    recipe = "naive-W8A8" if name in NO_FOLDS else "W8A8"
    levels = (1, 2, 3) if native else (2, 3) if name in STEPS_IN_XLA else (2,)
    result = judge(name, recipe, levels, native)
    assert result.agree, result.table()


@pytest.mark.optimized(17)
@pytest.mark.matrix(50, 2)
@pytest.mark.parametrize(("name", "native"), INT4_CASES)
def test_int4_codes_agree(judge, name, native):
    result = judge(name, "W4A8", (1, 2) if native else (2,), native)
    assert result.agree, result.table()


@pytest.fixture
def emulated_tiles(kernels, kernels_directory) -> Iterator[None]:
    library.choose_kernels("amx_emulated", kernels_directory)
    yield
    library.choose_kernels("auto", kernels_directory)


@pytest.mark.whole(5)
@pytest.mark.parametrize(("name", "recipe"), TILES_CASES)
def test_emulated_matrix_tiles_agree(judge, emulated_tiles, name, recipe):
    recipe = "naive-W8A8" if name in NO_FOLDS and recipe == "W8A8" else recipe
    result = judge(name, recipe, (2,), native=True)
    assert result.agree, result.table()
