"""The tokenizer of the pocket model, a byte-level BPE (arXiv 1508.07909); encode documents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"  # id 0: precedes every document, and ends generation


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE; every text it encodes begins with END, as in training."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, 0)]
    )
    return tokenizer


def encode_shuffled(tokenizer: Tokenizer, texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """Encode all texts as one sequence of tokens, uint16 [n], in a random but fixed order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    encoded = tokenizer.encode_batch([texts[i] for i in order])
    return np.concatenate([np.array(e.ids, np.uint16) for e in encoded])
