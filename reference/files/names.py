"""The names that files give tensors, and tensors that are not the model's but may be present.

    module.model.norm.weight     the prefix of a wrapper (DDP, FSDP, torch.compile, a trainer) or of
    language_model.model.norm.…  a larger model; without it the name is the architecture's
    norm.weight                  the base model saved without the architecture's first word
    …rotary_emb.inv_freq         a buffer, another head, a cache's scale: not used by the model

transformers reads them in the same way, but we never ignore a tensor that would change a number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from planish.reference.architectures import Architecture
from planish.reference.errors import CheckpointError
from planish.reference.files.floats import FLOATS
from planish.reference.files.safetensors import TensorEntry

WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
UNUSED = (  # patterns of tensors that no model of ours reads
    r".*rot\w*\.\w*inv_freq",
    r".*\.(cos|sin)_cached",
    r"(.*\.)?position_ids",
    r".*\.(attn|attention|self_attn|self_attention)\.masked_bias",
    r".*\.[kqv]_scale|.*\.(kv|prob)_scale",  # of an 8-bit cache or attention
    r".*\._extra_state",
    r"(\w+\.)?(score|classifier|classification_head|qa_outputs|summary|v_head|value_head)\..+",
    r"(\w+\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector)\..+",
)
STRAY = r"(.*\.)?scale_bf16_to_fp8"  # in every export of Neural Compressor; vLLM refuses it
MASK = r".*\.(attn|attention|self_attn|self_attention)\.(bias|mask|causal_mask)"  # of two axes


def base_names(architecture: Architecture) -> tuple[str, str]:
    """The embedding's name, and its first component, the prefix of all names of the base model."""
    name = architecture.tensor("embed").name
    return f"{name}.weight", name.partition(".")[0] + "."


def plain_names(names: Iterable[str], architecture: Architecture) -> dict[str, str]:
    """Each name -> the name without wrappers' prefixes.

    The prefix is what precedes the embedding's name, if only one tensor can be the embedding.
    """
    plain = {name: WRAPPERS.sub("", name) for name in names}
    full, base = base_names(architecture)
    for embed in (full, full.removeprefix(base)):
        ends = (name for name in plain.values() if name == embed or name.endswith(f".{embed}"))
        prefixes = {name.removesuffix(embed) for name in ends}
        if prefixes:
            prefix = prefixes.pop() if len(prefixes) == 1 else ""
            return {name: short.removeprefix(prefix) for name, short in plain.items()}
    return plain


def is_unused(name: str, architecture: Architecture, entry: TensorEntry | None = None) -> bool:
    """Whether a tensor that the model does not read can be ignored because of its name.

    entry: None for a tensor that only the index names.
    """
    if any(re.fullmatch(pattern, name) for pattern in (*UNUSED, *architecture.ignored)):
        return True
    return re.fullmatch(MASK, name) is not None and (entry is None or len(entry.shape) > 1)


def is_stray(name: str) -> bool:
    """Whether a tensor changes nothing here, though a file should not have it: lint warns."""
    return re.fullmatch(STRAY, name) is not None


def is_zero_bias(name: str, entry: TensorEntry, known: set[str]) -> bool:
    """Whether a tensor is the bias of a module without bias in this model, and is all zeros."""
    of_a_part = name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in known
    return of_a_part and entry.dtype in FLOATS and not entry.map().any()


def rename_entries(
    path: Path, entries: dict[str, TensorEntry], plain: dict[str, str]
) -> dict[str, TensorEntry]:
    """The tensors by their plain names; raises CheckpointError if two have the same."""
    renamed: dict[str, TensorEntry] = {}
    for name, entry in entries.items():
        if plain[name] in renamed:
            problem = "is given twice, with different prefixes"
            raise CheckpointError(problem, path=path, name=plain[name])
        renamed[plain[name]] = entry
    return renamed


def unknown_tensor(path: Path, name: str) -> CheckpointError:
    """The error for a tensor that is not part of the model but is meant to change its results."""
    problem, expected = "is not a tensor of this model", None
    if "lora_" in name:
        expected = "weights with the adapter merged into them"
    elif name.endswith(".bias"):
        expected = "no bias here, or zeros"
    return CheckpointError(problem, path=path, name=name, expected=expected)
