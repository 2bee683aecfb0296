"""Models written as GGUF and read back: the same codes, weights, config and tokenizer."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from planish.reference.errors import PlanishError
from planish.reference.files.export.convert import convert
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.gguf import read_gguf
from planish.reference.model.embedding import embedding_rows
from planish.reference.model.transformer import forward
from planish.reference.model.weights import block_linears
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import QuantizedWeight, dequantize
from planish.reference.text.tokenizer import load_tokenizer
from tests.gguf_files import write_tied
from tests.golden.foreign import TARGET
from tests.models import byte_tokenizer

SIZES = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
ENDS = {"bos_token_id": 256, "eos_token_id": 257}
TOKENS = [256, 5, 9, 200, 7, 31, 3]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
MIXTRAL = {"model_type": "mixtral", "num_local_experts": 3, "num_experts_per_tok": 2}
QWEN3_MOE = {"model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2}
QWEN3_MOE |= {"moe_intermediate_size": 32, "norm_topk_prob": True}
MODELS = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "llama3": {"rope_scaling": LLAMA3, "max_position_embeddings": 131072},
    "another llama3": {
        "rope_scaling": LLAMA3 | {"low_freq_factor": 2.0},
        "max_position_embeddings": 131072,
    },
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3"},
    "mixtral": MIXTRAL,
    "qwen3_moe": QWEN3_MOE,
    "three ends": {"eos_token_id": [257, 3, 4]},
}


@pytest.fixture
def model(tiny, tmp_path):
    """Write a tiny float model with a byte-level tokenizer."""

    def make(**changes):
        values = tiny.values("llama", **SIZES, **ENDS) | changes
        path = tiny.write(tmp_path / "model", values)
        byte_tokenizer().save(str(path / "tokenizer.json"))
        return path

    return make


def quantize(source, target, **changes):
    """Codes of the model, under W4A16 by default."""
    chosen = recipe(**{"name": "W4A16", "group_size": 32} | changes)
    with CheckpointWriter(target, source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, chosen, None)
    return target


def write(source, target, **changes):
    convert(open_checkpoint(source), target, Request(format="gguf", **changes))
    return open_checkpoint(target)


def linears(checkpoint):
    """Every linear of the blocks and lm_head, by name."""
    weights = load_weights(checkpoint)
    found = {
        f"{layer}.{name}": linear.weight
        for layer, block in enumerate(weights.blocks)
        for name, linear in block_linears(block).items()
    }
    return found | {"head": weights.head.weight}


def plain(weight):
    return dequantize(weight) if isinstance(weight, QuantizedWeight) else weight


def require_same_weights(first, second):
    one, other = linears(first), linears(second)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert np.array_equal(plain(weight), plain(other[name])), name


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", MODELS)
def test_a_float_model_is_the_same_to_the_bit(model, tmp_path, name):
    path = model(**MODELS[name])
    made, original = write(path, tmp_path / "model.gguf"), open_checkpoint(path)
    found, expected = (forward(c.config, load_weights(c), TOKENS) for c in (made, original))
    if name == "another llama3":  # its factors are read as those of longrope
        assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)
    else:
        assert np.array_equal(found, expected)
    assert made.config.eos_token_ids == original.config.eos_token_ids
    assert made.config.max_positions == original.config.max_positions


@pytest.mark.matrix(3)
@pytest.mark.parametrize("group_size", [32, 64, -1])  # 96 inputs have a short last group of 64
@pytest.mark.parametrize("rule", ["signed", "absmax"])
def test_int4_becomes_q4_0_with_the_same_codes(model, tmp_path, group_size, rule):
    source = quantize(model(), tmp_path / "codes", group_size=group_size, rule=rule)
    made = write(source, tmp_path / "model.gguf")
    assert read_gguf(made.path).tensors["blk.1.ffn_down.weight"].type == "Q4_0"
    one, other = linears(open_checkpoint(source)), linears(made)
    for name, weight in one.items():
        if isinstance(weight, QuantizedWeight):
            assert np.array_equal(weight.codes, other[name].codes), name
            assert np.array_equal(dequantize(weight), dequantize(other[name])), name
    again = write(made.path, tmp_path / "again.gguf")
    first, second = (read_gguf(one.path).tensors for one in (made, again))
    assert first == second
    assert all(np.array_equal(first[name].data, second[name].data) for name in first)


@pytest.mark.parametrize("values", [MIXTRAL, QWEN3_MOE], ids=lambda values: values["model_type"])
def test_codes_of_experts_are_the_same(model, tmp_path, values):
    source = quantize(model(**values), tmp_path / "codes")
    made, original = write(source, tmp_path / "model.gguf"), open_checkpoint(source)
    assert read_gguf(made.path).tensors["blk.1.ffn_up_exps.weight"].type == "Q4_0"
    found, expected = (forward(c.config, load_weights(c), TOKENS) for c in (made, original))
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", ["gguf-q4_0", "mlx-4bit-g64", "ct-w8a16-g64", "ct-w4a16-g32"])
def test_weights_of_other_programs_are_the_same(tmp_path, name):
    path = TARGET / name
    if not (path / "model.gguf").exists() and not (path / "tokenizer.json").exists():
        source = tmp_path / "source"
        source.mkdir()
        for file in path.iterdir():
            (source / file.name).symlink_to(file)
        letters = {letter: number for number, letter in enumerate("abcdefghij")}
        inner = Tokenizer(models.BPE(letters, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.save(str(source / "tokenizer.json"))
        path = source
    original = open_checkpoint(path, allow_links=True)
    convert(original, tmp_path / "model.gguf", Request(format="gguf"))
    require_same_weights(original, open_checkpoint(tmp_path / "model.gguf"))


def test_tensors_of_llama_cpp_come_back_to_the_byte(tmp_path):
    made = write(TARGET / "gguf-q4_0", tmp_path / "model.gguf").path
    first, second = (read_gguf(one).tensors for one in (TARGET / "gguf-q4_0" / "model.gguf", made))
    assert first.keys() == second.keys()
    for name in first:
        assert first[name] == second[name], name
        assert np.array_equal(first[name].data, second[name].data), name


@pytest.fixture
def tied(tmp_path):
    """The same file, of which the embedding is the head, too."""
    return write_tied(TARGET / "gguf-q4_0" / "model.gguf", tmp_path / "tied.gguf")


def test_codes_of_an_embedding_that_is_the_head_come_back_to_the_byte(tied, tmp_path):
    convert(open_checkpoint(tied), tmp_path / "planish", Request(format="planish"))
    for source in (tied, tmp_path / "planish"):
        made = write(source, tmp_path / "again.gguf", overwrite=True).path
        first, second = (read_gguf(one).tensors for one in (tied, made))
        assert first.keys() == second.keys()
        assert all(first[name] == second[name] for name in first)
        assert all(np.array_equal(first[name].data, second[name].data) for name in first)


@pytest.mark.matrix(2)
@pytest.mark.parametrize("name", ["compressed-tensors", "mlx", "gptq_v2", "float"])
def test_other_formats_mean_the_same_embedding_and_head(tied, tmp_path, name):
    original = open_checkpoint(tied)
    convert(original, tmp_path / name, Request(format=name))
    made = open_checkpoint(tmp_path / name)
    assert made.config.tie_embeddings
    assert (made.scheme("head") == original.scheme("head")) == (name == "mlx")
    require_same_weights(original, made)
    every = np.arange(original.config.vocab_size)
    assert np.array_equal(
        *(embedding_rows(load_weights(one).embed, every) for one in (original, made))
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dtype_is_of_matrices(model, tmp_path, dtype):
    made = write(model(), tmp_path / "model.gguf", dtype=dtype)
    kinds = {name: tensor.type for name, tensor in read_gguf(made.path).tensors.items()}
    expected = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == expected
    assert kinds["blk.0.attn_norm.weight"] == "F32"


def test_the_tokenizer_and_the_template_are_read_back(model, tmp_path):
    path = model()
    facts = {"chat_template": "{{ bos_token }}", "pad_token": {"content": "</s>"}}
    (path / "tokenizer_config.json").write_text(json.dumps(facts))
    made = write(path, tmp_path / "model.gguf")
    text = "\N{LATIN SMALL LETTER E WITH ACUTE}t\N{LATIN SMALL LETTER E WITH ACUTE} <s> 1999</s>"
    ids = [load_tokenizer(c.path, c.config).encode(text) for c in (made, open_checkpoint(path))]
    assert ids[0] == ids[1]
    keys = read_gguf(made.path).keys
    assert keys["tokenizer.chat_template"] == "{{ bos_token }}"
    assert keys["tokenizer.ggml.padding_token_id"] == 257
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert len(keys["tokenizer.ggml.tokens"]) == 300


REFUSED = {
    "int8 inputs": (
        {"name": "W4A8"},
        {},
        "q_proj: cannot be held by gguf; expected inputs in float",
    ),
    "scales": ({"name": "W8A16"}, {}, "scales that are exact in float16; --format compressed"),
    "offsets": ({"rule": "minmax"}, {}, "offsets that are exact in float16"),
    "attention": ({"name": "W4A16", "kv_cache": "int8"}, {}, "kv_cache: cannot be stored"),
    "architecture": (None, {"model_type": "smollm3"}, "model_type: cannot be held by gguf"),
    "routing": (
        None,
        QWEN3_MOE | {"norm_topk_prob": False},
        "moe: cannot be held by gguf; expected .*normalized.*; --format float",
    ),
    "window": (
        None,
        {"model_type": "mistral", "sliding_window": 8},
        "layers: cannot be held by gguf; expected .*; --format float",
    ),
    "yarn": (
        None,
        {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        "rope_scaling: cannot be held by gguf",
    ),
    "inputs": ({}, {"intermediate_size": 80}, "expected a multiple of 32 inputs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gguf_cannot_hold_is_refused_and_leaves_no_file(model, tmp_path, name):
    changes, config, message = REFUSED[name]
    source = model(**config)
    if changes is not None:
        if changes.get("name") == "W8A16":
            changes = changes | {"group_size": None}
        source = quantize(source, tmp_path / "codes", **changes)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(PlanishError, match=message):
        write(source, target / "model.gguf")
    assert list(target.iterdir()) == []


def test_a_tokenizer_that_keys_cannot_describe_is_refused(model, tiny, tmp_path):
    path = model()
    tiny.tokenizer().save(str(path / "tokenizer.json"))
    with pytest.raises(PlanishError, match="model: cannot be written as keys .* found WordLevel"):
        write(path, tmp_path / "model.gguf")
    inner = byte_tokenizer()
    inner.normalizer = normalizers.Lowercase()
    inner.save(str(path / "tokenizer.json"))
    with pytest.raises(PlanishError, match="pre_tokenizer: cannot be written as keys"):
        write(path, tmp_path / "model.gguf")


def test_a_file_is_replaced_only_if_asked(model, tmp_path):
    path, target = model(), tmp_path / "model.gguf"
    target.write_text("mine")
    with pytest.raises(PlanishError, match="exists; give --overwrite"):
        write(path, target)
    assert target.read_text() == "mine"
    with pytest.raises(PlanishError, match="expected a name that ends in .gguf"):
        write(path, tmp_path / "model.bin")
    assert write(path, target, overwrite=True).config.num_layers == 2
