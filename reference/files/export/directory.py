"""Write a Hugging Face directory: quantized linears in a writer's format, or everything in floats.

    checkpoint -> modules under Hugging Face's names (modules.py) -> tensors -> files

config.json is the model's own with the format's quantization_config. There are no padding tensors,
a tied lm_head is not written, and a GGUF file's tokenizer becomes files of its own.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from planish.reference.errors import RecipeError, notice
from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.codes import refine
from planish.reference.files.export.dtypes import Seen, cast, declared_dtype
from planish.reference.files.export.modules import Module, Place, all_places, modules, public_name
from planish.reference.files.export.protocol import (
    CannotHoldError,
    Facts,
    Refusal,
    Request,
    Writer,
)
from planish.reference.files.export.tied import Tied, tie
from planish.reference.files.writer import CheckpointWriter, companions
from planish.reference.gguf import find_gguf
from planish.reference.linear import quantized_weight
from planish.reference.quantized import dequantize
from planish.reference.scheme import Scheme
from planish.reference.text.gguf_tokenizer import gguf_chat_template, gguf_tokenizer

QUANTIZATION = ("quantization_config", "quantization", "compression_config")  # of any program
CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def write_format(checkpoint: Checkpoint, out: Path, request: Request, form: Writer) -> None:
    """Write a directory with quantized linears in a format of WRITERS."""
    tied, seen = tie(checkpoint, form), Seen()
    schemes, checkpoint = stored_schemes(tied, form), tied.checkpoint
    with CheckpointWriter(out, checkpoint.path, request.overwrite, padded=False) as sink:
        for module in map(tied.replace, modules(checkpoint, request.progress)):
            name = public_name(checkpoint, module.name)
            if module.linear is not None:
                seen.see_linear(module.linear)
                for kind, tensor in linear_tensors(checkpoint, form, module, schemes[name]).items():
                    sink.add(f"{name}.{kind}", tensor)
            for kind, tensor in cast_floats(checkpoint, module, request.dtype).items():
                seen.see_float(tensor, module.computed)
                sink.add(f"{name}.{kind}", tensor)
        dtype = request.dtype or seen.choose(declared_dtype(checkpoint))
        _notice_scales(seen, dtype)
        add_tokenizer(checkpoint, sink)
        places = all_places(checkpoint)
        shapes = {public_name(checkpoint, place.name): place.shape for place in places}
        facts = Facts(program=request.program, dtype=dtype, shapes=shapes)
        sink.finish(model_values(checkpoint, dtype) | form.config(schemes, facts))


def _notice_scales(seen: Seen, dtype: str) -> None:
    if not seen.exact[dtype]:
        words = "some scales are not exact in it; programs that cast them compute with others"
        notice(f"dtype {dtype}: {words}")


def stored_schemes(tied: Tied, form: Writer) -> dict[str, Scheme | None]:
    """The scheme of every linear as the format stores it, by its name; None: in floats.

    Raises RecipeError for the first linear that the format cannot hold, and for a model without
    quantized linears.
    """
    checkpoint, embedding = tied.checkpoint, tied.embedding
    require_float_attention(checkpoint)
    found: dict[str, Scheme | None] = {}
    more = [embedding.place] if embedding and embedding.place else []
    for place in [*all_places(checkpoint), *more]:
        scheme, name = place.scheme, public_name(checkpoint, place.name)
        if scheme is not None:
            if refusal := refuse_place(place) or form.refuse(scheme, place.shape):
                raise cannot_hold(checkpoint, form.NAME, name, refusal)
            scheme = form.regroup(scheme, place.shape)
        found[name] = scheme
    if not any(found.values()):
        expected = "a quantized model; quantize it, or --format float"
        raise RecipeError(
            f"cannot be written as {form.NAME}",
            path=checkpoint.path,
            expected=expected,
            found="floats",
        )
    return found


def refuse_place(place: Place) -> Refusal | None:
    """Why no format of other programs holds a linear: its weights are stored transposed."""
    if not place.transposed:
        return None
    expected, found = "weights [outputs, inputs]", "transposed ones (Conv1D)"
    return Refusal(expected=expected, found=found, nearest="planish")


def require_float_attention(checkpoint: Checkpoint) -> None:
    """Raise RecipeError for 8-bit attention or an 8-bit cache, which only planish stores."""
    config = checkpoint.config
    for name, found in (("attention", config.attention), ("kv_cache", config.kv_cache)):
        if not found.startswith("float"):
            raise RecipeError(
                "cannot be stored",
                path=checkpoint.path,
                name=name,
                expected="floats; --format planish",
                found=found,
            )


def cannot_hold(checkpoint: Checkpoint, form: str, name: str, refusal: Refusal) -> RecipeError:
    """The error for a linear that a format cannot hold."""
    return RecipeError(
        f"cannot be held by {form}",
        path=checkpoint.path,
        name=name,
        expected=f"{refusal.expected}; --format {refusal.nearest}",
        found=refusal.found,
    )


def linear_tensors(
    checkpoint: Checkpoint, form: Writer, module: Module, scheme: Scheme | None
) -> dict[str, np.ndarray]:
    """A quantized linear's tensors by suffix, without its bias."""
    assert module.linear is not None
    assert scheme is not None
    weight = refine(quantized_weight(module.linear), scheme)
    linear = replace(module.linear, weight=weight, bias=None)
    try:
        return form.tensors(linear, scheme)
    except CannotHoldError as problem:
        name = public_name(checkpoint, module.name)
        raise cannot_hold(checkpoint, form.NAME, name, problem.refusal) from None


def cast_floats(
    checkpoint: Checkpoint, module: Module, dtype: str | None
) -> Mapping[str, np.ndarray]:
    """A module's float tensors in a dtype; None: as they are."""
    named = ((kind, f"{module.name}.{kind}", x) for kind, x in module.floats.items())
    return {kind: cast(checkpoint, name, tensor, dtype) for kind, name, tensor in named}


def write_floats(checkpoint: Checkpoint, out: Path, request: Request) -> None:
    """Write the model in floats: dequantized, with what smoothing folded into it.

    Quantized inputs, attention and caches are floats, too, which a notice says.
    """
    _notice_inputs(checkpoint)
    checkpoint = tie(checkpoint).checkpoint
    seen = Seen()
    with CheckpointWriter(out, checkpoint.path, request.overwrite, padded=False) as sink:
        for module in modules(checkpoint, request.progress):
            name = public_name(checkpoint, module.name)
            for kind, tensor in cast_floats(checkpoint, in_floats(module), request.dtype).items():
                seen.see_float(tensor, module.computed or module.linear is not None)
                sink.add(f"{name}.{kind}", tensor)
        dtype = request.dtype or ("float32" if seen.computed else declared_dtype(checkpoint))
        add_tokenizer(checkpoint, sink)
        sink.finish(model_values(checkpoint, dtype))


def _notice_inputs(checkpoint: Checkpoint) -> None:
    schemes = (place.scheme for place in all_places(checkpoint))
    inputs = {scheme.activation for scheme in schemes if scheme is not None} - {"float"}
    inputs |= {checkpoint.config.attention} - {"float"}
    if inputs:
        notice(f"inputs that were INT8 ({', '.join(sorted(inputs))}) are floats in the new model")


def in_floats(module: Module) -> Module:
    """The module with the weight of a quantized linear dequantized, [K, N] if it is transposed."""
    if module.linear is None or module.place is None:
        return module
    weight = dequantize(quantized_weight(module.linear))
    weight = weight.T if module.place.transposed else weight
    floats = {"weight": weight, **module.floats}
    return Module(name=module.name, place=module.place, floats=floats, computed=True)


def model_values(checkpoint: Checkpoint, dtype: str) -> dict[str, Any]:
    """config.json of the model without any quantization; its dtype as declared."""
    values = add_architectures(without_quantization(checkpoint.values))
    values["torch_dtype" if "torch_dtype" in values else "dtype"] = dtype
    if checkpoint.config.tie_embeddings and checkpoint.scheme("head") is not None:
        values["tie_word_embeddings"] = False
    return values


def without_quantization(values: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without what any program says about quantization."""
    return copy.deepcopy({k: v for k, v in values.items() if k not in QUANTIZATION})


def add_architectures(values: dict[str, Any]) -> dict[str, Any]:
    """The values with the class of transformers, which the keys of a GGUF file do not name."""
    kind = values.get("model_type")
    known = {"architectures": [CLASSES[kind]]} if kind in CLASSES else {}
    return known | values


def add_tokenizer(checkpoint: Checkpoint, sink: CheckpointWriter) -> None:
    """The tokenizer and the chat template of a GGUF file; those of directories are copied.

    The files of a directory that was given in place of the file's keys are copied, too.
    """
    file, given = find_gguf(checkpoint.path), checkpoint.tokenizer_path
    if file is None:
        return
    for name in companions(given) if checkpoint.config_path is not None else ():
        if (given / name).is_file():
            sink.add_text(name, (given / name).read_text(encoding="utf-8"))
    if not (given / "tokenizer.json").is_file():
        sink.add_text("tokenizer.json", gguf_tokenizer(file).decode("utf-8"))
        if facts := gguf_chat_template(file):
            sink.add_text("tokenizer_config.json", json.dumps(facts, indent=2) + "\n")
