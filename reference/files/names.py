"""What a file may call its tensors, and what it may hold besides a model's.

    module.model.norm.weight     a wrapper's prefix: DDP, FSDP, torch.compile, a trainer, a larger
    language_model.model.norm.…  model; the name without it is the architecture's
    norm.weight                  the base model saved alone, without the architecture's first word
    …rotary_emb.inv_freq         a buffer, another head, a cache's scale: no part of the graph

As transformers reads them; but a tensor that would change a number is never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from planish.reference.architectures import Architecture
from planish.reference.files.safetensors import DTYPES, TensorEntry

WRAPPERS = re.compile(
    r"(?<![^.])(module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
UNUSED = (  # patterns of tensors that no graph of ours reads, whatever their values
    r".*rot\w*\.\w*inv_freq",
    r".*\.(cos|sin)_cached",
    r"(.*\.)?position_ids",
    r".*\.(attn|attention|self_attn|self_attention)\.masked_bias",
    r".*\.[kqv]_scale|.*\.(kv|prob)_scale",  # of a cache or of attention in eight bits
    r".*\._extra_state",
    r"(\w+\.)?(score|classifier|classification_head|qa_outputs|summary|v_head|value_head)\..+",
    r"(\w+\.)?(vision_tower|vision_model|visual|audio_tower|multi_modal_projector)\..+",
)
MASK = r".*\.(attn|attention|self_attn|self_attention)\.(bias|mask|causal_mask)"  # of two axes


def base_names(architecture: Architecture) -> tuple[str, str]:
    """The embedding's name, and its first word, with which all names of the base model begin."""
    name = architecture.tensor("embed").name
    return f"{name}.weight", name.partition(".")[0] + "."


def plain_names(names: Iterable[str], architecture: Architecture) -> dict[str, str]:
    """Each name -> the same without wrappers' prefixes.

    What comes before the embedding's name is the prefix, if only one tensor can be that.
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
    """Whether a tensor that is no part of the model may be passed over by its name alone.

    Without its entry, a tensor that only the index names.
    """
    if any(re.fullmatch(pattern, name) for pattern in (*UNUSED, *architecture.ignored)):
        return True
    return re.fullmatch(MASK, name) is not None and (entry is None or len(entry.shape) > 1)


def is_zero_bias(name: str, entry: TensorEntry, known: set[str]) -> bool:
    """Whether it is the bias of a part that has none in the graph, and adds nothing."""
    of_a_part = name.endswith(".bias") and f"{name.removesuffix('bias')}weight" in known
    return of_a_part and entry.dtype in DTYPES and not entry.map().any()
