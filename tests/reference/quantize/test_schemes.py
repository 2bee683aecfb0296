"""Patterns of linears left in float: the names that match, and the patterns that are refused."""

from pathlib import Path

import pytest

from planish.reference.errors import RecipeError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model.transformer import forward
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.quantize.schemes import block_schemes, check_schemes
from planish.reference.scheme import int4, int8

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
            check_schemes(checkpoint, chosen)
    else:
        check_schemes(checkpoint, chosen)
        schemes = block_schemes(checkpoint, chosen, 0)
        floats = {part for part, scheme in schemes.items() if scheme is None}
        assert floats - {"router"} == set(expected) - {"router"}


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
        check_schemes(open_checkpoint(GOLDEN / GPT2), recipe("W8A16", ignore=("c_fc", pattern)))


@pytest.mark.parametrize("pattern", ["lm_head", "re:lm_head", "*"])
def test_a_head_is_not_both_quantized_and_ignored(pattern):
    chosen = recipe("W8A16", ignore=(pattern,), head="int8")
    with pytest.raises(RecipeError, match="ignore: contradicts lm_head int8"):
        check_schemes(open_checkpoint(GOLDEN / LLAMA), chosen)


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
    written = {name.removesuffix(".weight") for name in kept}
    assert all(opened.schemes().get(name) is None for name in written)
    assert all(opened.entries[tensor].dtype in ("F32", "F16", "BF16") for tensor in kept)
    assert "I8" in {entry.dtype for entry in opened.entries.values()}
    found, expected = (forward(c.config, load_weights(c), range(9)) for c in (opened, source))
    assert 0 < abs(found - expected).max() < 0.1 * abs(expected).max()


def test_patterns_give_linears_schemes_and_fused_ones_each_its_own():
    checkpoint = open_checkpoint(GOLDEN / GPT2)
    chosen = recipe("W4A16", scheme="c_attn.v=W8A8,c_attn=W8A16,mlp.c_proj=W4A16-g32")
    check_schemes(checkpoint, chosen)
    found = block_schemes(checkpoint, chosen, 0)
    assert found["q"] == found["k"] == int8() and found["v"] == int8(activation="per_token")
    assert found["down"] == int4(32) and found["up"] == found["o"] == int4(128)


@pytest.mark.parametrize(
    ("name", "scheme", "message"),
    [
        (GPT2, "c_fcc=W8A8", "^scheme: matches nothing in this model; .*c_fc"),
        (GPT2, "c_fc=W8A8,mlp.c_fc=O1", "^scheme: has no effect; expected a linear.*'mlp.c_fc'"),
        (GPT2, "ln_1=W8A8", "^scheme: has no effect"),
        (GPT2, "lm_head=O2", "^scheme: cannot be used for lm_head.*per_token"),
        (GPT2, "*=O3", "cannot be used for lm_head; .*put lm_head=float first"),
        (MIXTRAL, "block_sparse_moe.gate=W8A8", "^scheme: has no effect"),
        (MIXTRAL, "experts.1=W4A16", "gives the experts of a layer different schemes; .*found"),
        (MIXTRAL, "*.w2=float", "leaves some experts of a layer in float"),
    ],
)
def test_a_scheme_that_cannot_be_had_is_refused(name, scheme, message):
    with pytest.raises(RecipeError, match=message):
        check_schemes(open_checkpoint(GOLDEN / name), recipe("W8A16", scheme=scheme))
