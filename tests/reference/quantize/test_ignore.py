"""Patterns of linears left in float: the names that match, and the patterns that are refused."""

from pathlib import Path

import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.ignore import check_ignore, ignored_parts
from planish.reference.quantize.recipe import recipe

GOLDEN = Path(__file__).parents[2] / "golden"
GPT2, PHI3, MIXTRAL = "gpt2-hub-prefix", "phi3-window", "mixtral-two-of-four"
FALCON, LLAMA = "falcon-7b-form", "llama-tied-grouped"
EXPERTS = frozenset(f"experts.{e}.{part}" for e in range(4) for part in ("gate", "up", "down"))

MATCHES = [
    (GPT2, "h.0.attn.c_attn", "qkv"),  # as in the source
    (GPT2, "h.0.attn.c_attn.weight", "qkv"),  # as `inspect` shows it
    (GPT2, "h.{i}.mlp.c_fc.weight", ["up"]),
    (GPT2, "transformer.h.0.attn.c_attn", "qkv"),  # as its module is called
    (GPT2, "h.0.attn.c_attn.k", "k"),  # as planish writes it
    (GPT2, "*.c_attn", "qkv"),
    (GPT2, "c_proj", ["o", "down"]),
    (GPT2, "mlp.c_*", ["up", "down"]),
    (GPT2, "re:.*c_fc", ["up"]),
    (GPT2, "re:.*c_fc$", ["up"]),
    (GPT2, r"re:.*c_fc\.weight$", ["up"]),
    (GPT2, r"re:transformer\.h\.0\.attn", "qkvo"),
    (GPT2, "re:c_fc", None),  # not from the start of a name
    (GPT2, "c_f", None),  # not a whole component
    (GPT2, "H.0.attn.c_attn", None),
    (FALCON, "query_key_value", "qkv"),
    (FALCON, "re:.*query_key_value$", "qkv"),
    (PHI3, "*.qkv_proj", "qkv"),
    (PHI3, "model.layers.0.mlp.gate_up_proj", ["gate", "up"]),
    (LLAMA, "down_proj", ["down"]),
    (LLAMA, "layers.0", [*"qkvo", "gate", "up", "down"]),
    (LLAMA, "model.layers.1.*", []),  # another layer's
    (LLAMA, "lm_head", []),  # float by default
    (MIXTRAL, "block_sparse_moe.experts", EXPERTS),
    (MIXTRAL, "re:.*experts", EXPERTS),
    (MIXTRAL, "experts.w[123]", EXPERTS),  # as they are written, together
    (MIXTRAL, "re:.*block_sparse_moe.gate$", ["router"]),  # never quantized
]


@pytest.mark.parametrize(("name", "pattern", "expected"), MATCHES)
def test_a_pattern_may_use_any_name_that_a_linear_goes_by(name, pattern, expected):
    checkpoint, chosen = open_checkpoint(GOLDEN / name), recipe("W8A16", ignore=(pattern,))
    if expected is None:
        with pytest.raises(RecipeError, match="ignore: matches nothing in this model"):
            check_ignore(checkpoint, chosen)
    else:
        check_ignore(checkpoint, chosen)
        assert ignored_parts(checkpoint, chosen, 0) == frozenset(expected)


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("*.c_fcc", "as c_fc"),
        ("re:.*atn.c_attn$", "c_attn"),
        ("nonsense", r"as .*c_attn, c_fc, c_proj"),
    ],
)
def test_a_pattern_without_a_match_is_answered_with_near_names(pattern, nearest):
    with pytest.raises(RecipeError, match=f"^ignore: matches nothing.*{nearest}"):
        check_ignore(open_checkpoint(GOLDEN / GPT2), recipe("W8A16", ignore=("c_fc", pattern)))


@pytest.mark.parametrize("pattern", ["lm_head", "re:lm_head", "*"])
def test_a_head_is_not_both_quantized_and_ignored(pattern):
    chosen = recipe("W8A16", ignore=(pattern,), head="int8")
    with pytest.raises(RecipeError, match="ignore: contradicts lm_head int8"):
        check_ignore(open_checkpoint(GOLDEN / LLAMA), chosen)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("re:[", "not a regular expression: unterminated character set"),
        ("re:a{99999999999}", "not a regular expression"),
        ("re:", "empty"),
        ("", "empty"),
    ],
)
def test_a_pattern_that_is_none_is_refused_before_a_model_is_opened(pattern, problem):
    with pytest.raises(RecipeError, match=f"^ignore: .*{problem}"):
        recipe("W8A16", ignore=(pattern,))


@pytest.mark.parametrize(
    ("name", "pattern", "kept"),
    [
        (GPT2, "c_attn", ["h.0.attn.c_attn.k.weight", "h.0.attn.c_attn.q.weight"]),
        (PHI3, "gate_up_proj", ["model.layers.1.mlp.gate_up_proj.up.weight"]),
        (
            MIXTRAL,
            "layers.0.block_sparse_moe.experts",
            ["model.layers.0.block_sparse_moe.experts.3.w2.weight"],
        ),
    ],
)
def test_a_directory_with_ignored_linears_records_them_and_is_read_again(
    tmp_path, name, pattern, kept
):
    source = open_checkpoint(GOLDEN / name)
    with CheckpointWriter(tmp_path / "q", source.path) as writer:
        quantize_checkpoint(source, writer, recipe("W8A16", ignore=(pattern,)))
    opened = open_checkpoint(tmp_path / "q")
    assert opened.quantization["ignore"] == [pattern]
    assert all(opened.entries[tensor].dtype in ("F32", "F16", "BF16") for tensor in kept)
    assert "I8" in {entry.dtype for entry in opened.entries.values()}
    found, expected = (forward(c.config, load_weights(c), range(9)) for c in (opened, source))
    assert 0 < abs(found - expected).max() < 0.1 * abs(expected).max()
