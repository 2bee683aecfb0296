"""Tensor names as public checkpoints have them: the same model under each spelling.

Buffers that older versions saved carry no weights: causal masks, of any type, and frequencies.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from planish.reference.errors import CheckpointError
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears, block_norms

GOLDEN = Path(__file__).parents[2] / "golden"
TOKENS = np.random.default_rng(11).integers(0, 256, 12)

FLOAT_MASK = np.tril(np.ones((1, 1, 8, 8), np.float32))
BYTE_MASK, BOOL_MASK = FLOAT_MASK.astype(np.uint8), FLOAT_MASK.astype(bool)
MASKED = np.array(-1e4, np.float32)  # a number by itself: shape []
HALF_MASKED = np.array(-65504, np.float16)
FREQUENCIES = np.array([1.0, 0.1], np.float32)
ATTENTION = "model.layers.{i}.self_attn."
HEADS = "lm_head.weight"

# golden, names changed, buffers added to each layer, the tensor that also lies there as the head
SPELLINGS = {
    "gpt2": ("gpt2-hub-prefix", {}, {"h.{i}.attn.bias": FLOAT_MASK}, None),
    "gpt2 with transformer": ("gpt2-hub-prefix", {"^": "transformer."}, {}, "wte.weight"),
    "gpt2 of stanford-crfm": (
        "gpt2-scaled-by-layer",
        {},
        {"transformer.h.{i}.attn.bias": BYTE_MASK, "transformer.h.{i}.attn.masked_bias": MASKED},
        "transformer.wte.weight",
    ),
    "bloom": ("bloom-tied", {r"^transformer\.": ""}, {}, "transformer.word_embeddings.weight"),
    "opt-125m": ("opt-pre-norm", {}, {}, "model.decoder.embed_tokens.weight"),
    "opt-6.7b": ("opt-pre-norm", {r"^model\.": ""}, {}, "model.decoder.embed_tokens.weight"),
    "opt-350m": ("opt-350m-form", {r"^model\.": ""}, {}, "model.decoder.embed_tokens.weight"),
    "falcon-7b": (
        "falcon-7b-form",
        {},
        {"transformer.h.{i}.self_attention.rotary_emb.inv_freq": FREQUENCIES},
        "transformer.word_embeddings.weight",
    ),
    "falcon-40b": (
        "falcon-40b-form",
        {},
        {"transformer.h.{i}.self_attention.maybe_rotary.inv_freq": FREQUENCIES},
        None,
    ),
    "gpt-j": (
        "gptj-partial-rotary",
        {},
        {"transformer.h.{i}.attn.bias": BOOL_MASK, "transformer.h.{i}.attn.masked_bias": MASKED},
        None,
    ),
    "pythia": (
        "gpt_neox-parallel",
        {},
        {
            "gpt_neox.layers.{i}.attention.bias": BYTE_MASK,
            "gpt_neox.layers.{i}.attention.masked_bias": HALF_MASKED,
            "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq": FREQUENCIES,
        },
        None,
    ),
    "gpt-neox by transformers 5": ("gpt_neox-parallel", {"embed_out": "lm_head"}, {}, None),
    "mpt": ("mpt-alibi", {}, {}, "transformer.wte.weight"),
    "starcoder": (
        "gpt_bigcode-multi-query",
        {},
        {"transformer.h.{i}.attn.bias": BOOL_MASK},
        "transformer.wte.weight",
    ),
    "llama": (
        "llama-old-spelling",
        {},
        {ATTENTION + "rotary_emb.inv_freq": FREQUENCIES},
        "model.embed_tokens.weight",
    ),
    "llama, one for all": (
        "llama-untied-wide-heads",
        {},
        {"model.rotary_emb.inv_freq": FREQUENCIES},
        None,
    ),
    "mixtral": (
        "mixtral-window-untied",
        {},
        {ATTENTION + "rotary_emb.inv_freq": FREQUENCIES},
        None,
    ),
    "mixtral by transformers 5": (
        "mixtral-two-of-four",
        {"block_sparse_moe": "mlp"},
        {},
        "model.embed_tokens.weight",
    ),
    "stablelm": ("stablelm-3b-form", {}, {ATTENTION + "rotary_emb.inv_freq": FREQUENCIES}, None),
    "qwen3 with its head": ("qwen3-norms", {}, {}, "model.embed_tokens.weight"),
    "gemma2 with its head": ("gemma2-caps", {}, {}, "model.embed_tokens.weight"),
    "gemma3 with its head": ("gemma3_text-two-bases", {}, {}, "model.embed_tokens.weight"),
    "phi-4-mini with its head": ("phi3-longrope-partial", {}, {}, "model.embed_tokens.weight"),
}


def spelled(path, golden, renamed, buffers, head):
    """A golden's directory with other names, buffers in each of two layers, and its head."""
    directory = shutil.copytree(GOLDEN / golden, path / "spelled")
    tensors = load_file(directory / "model.safetensors")
    extra = {name.format(i=layer): array for name, array in buffers.items() for layer in range(2)}
    if head is not None:
        assert HEADS not in tensors
        extra[HEADS] = tensors[head]
    for old, new in renamed.items():
        tensors = {re.sub(old, new, name, count=1): array for name, array in tensors.items()}
    assert not set(extra) & set(tensors)
    save_file(tensors | extra, directory / "model.safetensors")
    return directory


def arrays(path):
    """Everything that is loaded, by the part's name."""
    weights = load_weights(open_checkpoint(path))
    found = {"embed": weights.embed, "head": weights.head.weight}
    for layer, block in enumerate(weights.blocks):
        for name, part in (block_linears(block) | block_norms(block)).items():
            found[f"{layer}.{name}"] = part.weight
            if part.bias is not None:
                found[f"{layer}.{name}.bias"] = part.bias
    return found


@pytest.mark.matrix(4)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_public_spelling_is_the_same_model(spelling, tmp_path):
    golden = GOLDEN / SPELLINGS[spelling][0]
    directory = spelled(tmp_path, *SPELLINGS[spelling])
    expected, found = arrays(golden), arrays(directory)
    assert expected.keys() == found.keys()
    assert all(np.array_equal(array, found[name]) for name, array in expected.items())
    logits = [
        forward((opened := open_checkpoint(path)).config, load_weights(opened), TOKENS)
        for path in (golden, directory)
    ]
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    ("spelling", "tensor"),
    [
        ("gpt2", "h.0.attn.scale"),
        ("falcon-7b", "transformer.h.0.self_attention.query_key_value.bias"),
        ("pythia", "gpt_neox.layers.0.attention.query_key_value.inv_freq"),
        ("llama", ATTENTION.format(i=1) + "q_proj.inv_freq"),
        ("llama", "model.layers.0.score.weight"),
        ("mpt", "transformer.wpe.weight"),
    ],
)
def test_buffers_do_not_hide_what_a_model_does_not_have(spelling, tensor, tmp_path):
    golden, renamed, buffers, head = SPELLINGS[spelling]
    added = {**buffers, tensor: np.ones(2, np.float32)}
    with pytest.raises(
        CheckpointError, match=f"{re.escape(tensor)}: is not a tensor of this model"
    ):
        open_checkpoint(spelled(tmp_path, golden, renamed, added, head))


def test_a_head_that_says_it_is_tied_and_differs_is_refused(tmp_path):
    directory = spelled(tmp_path, *SPELLINGS["gemma2 with its head"])
    tensors = load_file(directory / "model.safetensors")
    tensors[HEADS] = tensors[HEADS] * np.float32(2)
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{HEADS}: bad value; expected the embedding"):
        load_weights(open_checkpoint(directory))
