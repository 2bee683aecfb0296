"""The tokenizer of the pocket model: byte-level BPE, and documents as one run of its tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

END = "<|endoftext|>"  # id 0: before every document, and the sign to stop


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE; every text it encodes begins with END, as documents did in training."""
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
    """All texts as one run of tokens, uint16 [n], in a random but fixed order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    encoded = tokenizer.encode_batch([texts[i] for i in order])
    return np.concatenate([np.array(e.ids, np.uint16) for e in encoded])
