"""Models with random weights, to measure speed at sizes for which there are no weights here.

Speed does not depend on the values, so the codes are random bytes, written in the layout that the
kernels read. No linear ever exists in floats; 7 billion weights of 4 bits take seconds to write.
The scales give weights a standard deviation of 0.02, about that of trained ones, so that logits are
finite and engines can be compared on them. The text that such a model writes means nothing.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from planish.compare.bench.sizes import ModelSize
from planish.reference.architectures import Architecture, architecture_of, model_config
from planish.reference.files.formats import FORMATS
from planish.reference.files.writer import CheckpointWriter
from planish.reference.grids import SYMMETRIC_ZERO, num_groups
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig
from planish.reference.model.experts import stack_linears
from planish.reference.model.shapes import block_norms, block_shapes, outer_norms, outer_shapes
from planish.reference.model.weights import split_expert
from planish.reference.packing import TILE_OUTPUTS, tile_shape
from planish.reference.quantize.output import recipe_facts
from planish.reference.quantize.recipe import HEAD, Recipe, recipe
from planish.reference.quantized import QuantizedWeight, to_layout
from planish.reference.scheme import Scheme

STD = 0.02  # of the weights
STD_INT8 = math.sqrt(np.mean(np.maximum(np.arange(-128.0, 128), -127) ** 2))  # of random codes
STD_INT4 = math.sqrt(np.mean((np.arange(16.0) - SYMMETRIC_ZERO) ** 2))


def write_random(
    size: ModelSize,
    directory: str | Path,
    recipe_name: str = "W4A8",
    group_size: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write a model of this size; returns its directory. The same seed gives the same bytes.

    recipe_name: float, W8A8, W8A16, W4A8 or W4A16; group_size (default 128) is for INT4.
    Nothing is smoothed. Raises RecipeError for a recipe that does not exist, OutputError where the
    directory cannot be written.
    """
    chosen = make_recipe(recipe_name, group_size)
    rng, values = np.random.Generator(np.random.SFC64(seed)), make_config(size)
    form, schemes = FORMATS["planish"], dict[str, Scheme | None]()
    with CheckpointWriter(directory, overwrite=overwrite) as writer:
        for prefix, linear in draw_linears(values, chosen, rng):
            if linear.scheme is not None:
                form.write(writer, prefix, linear)
                schemes[prefix] = linear.scheme
            else:
                writer.add(f"{prefix}.weight", np.asarray(linear.weight))
        writer.add_text("tokenizer.json", make_tokenizer(size.vocab).to_str())
        if chosen.quantizes:
            values["quantization_config"] = form.config(schemes, "tiles") | recipe_facts(chosen)
        writer.finish(values)
    return Path(directory)


def make_recipe(name: str, group_size: int | None = None) -> Recipe:
    """The named recipe without smoothing, lm_head with the bits of the other linears."""
    default = recipe(name).default
    head = "float" if default is None else f"int{default.bits}"
    return replace(recipe(name, group_size=group_size, head=head), smoothing=None)


def make_config(size: ModelSize) -> dict[str, Any]:
    """The config.json of a model of this size; it has no end-of-text token."""
    values = {
        "architectures": [size.model_class],
        "model_type": size.model_type,
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.ffn,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": 8192,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    own = {"head_dim": size.head_width} if size.head_width else {}
    return values | own | make_expert_config(size)


def make_expert_config(size: ModelSize) -> dict[str, Any]:
    """The keys of a mixture of experts, as every architecture with experts spells them."""
    if size.experts == 0:
        return {}
    return {
        "num_experts": size.experts,
        "num_local_experts": size.experts,
        "num_experts_per_tok": size.top_k,
        "moe_intermediate_size": size.ffn,
        "norm_topk_prob": True,
    }


def draw_linears(
    values: dict[str, Any], recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[str, Linear]]:
    """Every tensor of the model, one at a time in the file's order: its prefix and a Linear.

    Embedding and norms are included, as float weights that no recipe quantizes.
    """
    config, path = model_config(values, Path("config.json")), Path("config.json")
    entry, outer, scheme = architecture_of(values, path), outer_shapes(config), recipe.default
    yield entry.tensor("embed").name, Linear(draw_floats(outer["embed"], rng))
    for layer in range(config.num_layers):
        for part, norm in block_norms(config).items():
            yield entry.tensor(part).name.format(i=layer), Linear(draw_norm(norm, rng))
        for part, (shape, _) in block_shapes(config, layer).items():
            yield from draw_linear(entry, config, part, layer, shape, scheme, rng)
    for part, norm in outer_norms(config).items():
        yield entry.tensor(part).name, Linear(draw_norm(norm, rng))
    head = recipe.scheme_of(HEAD)
    yield entry.tensor("head").name, Linear(draw_weight(outer["head"], head, rng))


def draw_linear(
    entry: Architecture,
    config: ModelConfig,
    part: str,
    layer: int,
    shape: tuple[int, ...],
    scheme: Scheme | None,
    rng: np.random.Generator,
) -> Iterator[tuple[str, Linear]]:
    """One linear of a block; for the first expert, all of them if they are stored stacked."""
    general, expert = split_expert(part)
    name = entry.tensor(general).name
    if part == "router":
        yield name.format(i=layer), Linear(draw_floats(shape, rng))
    elif expert is None or scheme is None:
        yield name.format(i=layer, e=expert), Linear(draw_weight(shape, scheme, rng))
    elif expert == 0 and config.moe is not None:
        count = config.moe.num_experts
        linears = [Linear(draw_weight(shape, scheme, rng)) for _ in range(count)]
        yield name.replace(".{e}", "").format(i=layer), stack_linears(linears)


def draw_weight(
    shape: tuple[int, ...], scheme: Scheme | None, rng: np.random.Generator
) -> np.ndarray | QuantizedWeight:
    """A weight [N, K] on the scheme's grid, in tiles whose padding is zero; or float32."""
    if scheme is None:
        return draw_floats(shape, rng)
    rows, cols = shape
    weight = (draw_int8 if scheme.bits == 8 else draw_int4)(rows, cols, scheme, rng)
    padded = math.prod(tile_shape(rows, cols, scheme.bits)) * 8 // scheme.bits > rows * cols
    return to_layout(to_layout(weight, "canonical"), "tiles") if padded else weight


def draw_int8(rows: int, cols: int, scheme: Scheme, rng: np.random.Generator) -> QuantizedWeight:
    """Codes -127..127, equally likely, except that -127 is twice as likely."""
    codes = np.maximum(draw_bytes(tile_shape(rows, cols, 8), rng).view(np.int8), -127)
    count = 1 if scheme.granularity == "per_tensor" else rows
    scale = (STD / STD_INT8 * rng.uniform(0.5, 1.5, (count, 1))).astype(np.float32)
    shape = rows, cols
    return QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=shape, layout="tiles")


def draw_int4(rows: int, cols: int, scheme: Scheme, rng: np.random.Generator) -> QuantizedWeight:
    """Codes 0..15; scales of both signs, as the rule `signed` gives, and no zero points."""
    codes = draw_bytes(tile_shape(rows, cols, 4), rng)
    groups = (codes.shape[0], num_groups(cols, scheme.group_size), TILE_OUTPUTS)
    size = STD / STD_INT4 * rng.uniform(0.5, 1.5, groups) * rng.choice([-1, 1], groups)
    scale, shape = size.astype(scheme.scale_dtype), (rows, cols)
    return QuantizedWeight(codes=codes, scale=scale, scheme=scheme, shape=shape, layout="tiles")


def draw_bytes(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return np.frombuffer(rng.bytes(math.prod(shape)), np.uint8).reshape(shape)


def draw_floats(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) * np.float32(STD)


def draw_norm(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(0.5, 1.5, shape).astype(np.float32)


def make_tokenizer(vocab: int) -> Tokenizer:
    """One token per byte, ids 0..255; every other id has a word, which no text is encoded to."""
    tokens = {token: i for i, token in enumerate(list_tokens(vocab))}
    tokenizer = Tokenizer(models.BPE(tokens, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def list_tokens(vocab: int) -> list[str]:
    """The letters of byte-level BPE, then words of letters such as Ġbaaa; at least the former.

    Nearly all that a random model says are words: a server has text to send for each."""
    letters = string.ascii_lowercase
    words = ("".join(word) for word in itertools.product(letters, repeat=4))
    count = max(vocab - 256, 0)
    return sorted(pre_tokenizers.ByteLevel.alphabet()) + [
        f"\u0120{word}" for word in itertools.islice(words, count)
    ]
