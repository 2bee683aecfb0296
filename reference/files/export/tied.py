"""A quantized embedding, which may be the head, too: its codes are written once.

Reading gives a model whose head is tied to such an embedding its codes as lm_head's
(formats/translate.py). GGUF and MLX store the codes as the embedding, if they can hold them; the
other formats store the embedding in floats, which means the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planish.reference.files.checkpoint import Checkpoint
from planish.reference.files.export.codes import refine
from planish.reference.files.export.modules import Module, Place, head_place
from planish.reference.files.export.protocol import CannotHoldError, Writer
from planish.reference.files.load import load_coded_embed, load_linear
from planish.reference.linear import Linear, quantized_weight
from planish.reference.quantized import dequantize

WITH_EMBEDDINGS = ("mlx",)  # directories whose embeddings may have codes


@dataclass(frozen=True, kw_only=True)
class Tied:
    """A checkpoint whose tied head is in floats, and the embedding's codes if they are kept."""

    checkpoint: Checkpoint
    embedding: Module | None = None

    def replace(self, module: Module) -> Module:
        """The embedding with its codes in place of the one in floats; others as they are."""
        own = self.embedding
        return own if own is not None and own.name == module.name else module


def tie(checkpoint: Checkpoint, form: Writer | None = None) -> Tied:
    """The checkpoint without the embedding's codes as its head's, and these if they are kept.

    form: a format that may hold them in the embedding; None for floats.
    """
    head = shared_head(checkpoint)
    plain = checkpoint if head is None else without_codes(checkpoint)
    own = coded_embedding(checkpoint) if head is None else head
    if form is None or form.NAME not in WITH_EMBEDDINGS or own is None:
        return Tied(checkpoint=plain)
    weight = quantized_weight(own)
    name = checkpoint.source("embed").name
    place = Place(name=name, layer=None, parts=("embed",), scheme=weight.scheme, shape=weight.shape)
    if not _holds(form, own):
        return Tied(checkpoint=plain)
    return Tied(checkpoint=plain, embedding=Module(name=name, place=place, linear=own))


def _holds(form: Writer, linear: Linear) -> bool:
    """Whether a format holds a linear: its scheme, and its numbers."""
    weight = quantized_weight(linear)
    if form.refuse(weight.scheme, weight.shape):
        return False
    scheme = form.regroup(weight.scheme, weight.shape)
    try:
        form.tensors(replace(linear, weight=refine(weight, scheme)), scheme)
    except CannotHoldError:
        return False
    return True


def coded_embedding(checkpoint: Checkpoint) -> Linear | None:
    """An embedding that is not the head and has codes of another program; else None."""
    coded = None if checkpoint.config.tie_embeddings else load_coded_embed(checkpoint)
    return None if coded is None else Linear(coded)


def shared_head(checkpoint: Checkpoint) -> Linear | None:
    """lm_head, if it is tied, has codes, and these are the embedding; else None."""
    config = checkpoint.config
    if not config.tie_embeddings or checkpoint.scheme("head") is None or config.head_bias:
        return None
    head = load_linear(checkpoint, "head", None, head_place(checkpoint).shape, has_bias=False)
    embedding = checkpoint.entries[f"{checkpoint.source('embed').name}.weight"].map()
    same = np.array_equal(dequantize(quantized_weight(head)), embedding)
    return head if same else None


def without_codes(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without a head, which is then the embedding, in floats."""
    prefix, declared = checkpoint.prefix("head"), checkpoint.declared
    entries = {
        name: entry
        for name, entry in checkpoint.entries.items()
        if name.rpartition(".")[0] != prefix
    }
    if declared is not None:
        targets = {name: scheme for name, scheme in declared.targets.items() if name != prefix}
        declared = replace(declared, targets=targets, head=None)
    return replace(checkpoint, entries=entries, declared=declared)
