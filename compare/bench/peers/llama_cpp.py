"""llama.cpp, driven as its llama-bench drives it: llama_batch, llama_decode, the last logits.

Prompts are decoded in batches of 512. The CPU backend repacks Q4_0 at loading, for the instruction
sets that it was compiled for, so llama-cpp-python must be built on this machine with
-DGGML_NATIVE=ON: a portable build is several times slower. Flash attention is on.

A build by g++ 12.2 with AMX (llama-cpp-python 0.3.36) dies of an illegal instruction at its first
product; https://github.com/ggml-org/llama.cpp/pull/26954 is about such a death. The fallback is to
load without `use_extra_bufts`: no weights are repacked, so neither AMX's kernels nor the other ones
that need repacked weights are used.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from planish.compare.bench.peers import gguf_file
from planish.compare.bench.peers.child import Job, serve
from planish.compare.bench.peers.weights import count_linear_bytes

BATCH = 512  # tokens that one call computes
PAD = 256  # llama.cpp rounds a sequence's cache up to it
REPACKED = {"AMX_INT8", "REPACK"}  # features that work on repacked weights


class LlamaCpp:
    """A memory-mapped model, and a context for each number and length of sequences."""

    def __init__(self, job: Job):
        path = Path(job.directory, "model.gguf")
        gguf_file.write(path, job.sizes, job.format)
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.use_extra_bufts = not job.fallback
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp does not load the file")
        path.unlink()  # it stays mapped, and the disk space is freed however this process ends
        self.threads, self.vocab = job.threads, job.sizes.vocab
        self.version = f"llama-cpp-python {llama_cpp.__version__}"
        self.weight_bytes = count_linear_bytes(job.sizes, gguf_file.block_bits(job.format))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.contexts: dict[tuple[int, int], Any] = {}
        features = find_features(llama_cpp.llama_print_system_info().decode())
        unused = REPACKED if job.fallback else set[str]()
        self.kernels = " ".join(name for name in features if name not in unused)

    def reset(self, batch: int, length: int) -> None:
        key = (batch, -(-length // PAD) * PAD)
        if key not in self.contexts:
            self.contexts[key] = self.new_context(*key)
        self.context, self.length = self.contexts[key], 0
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def new_context(self, batch: int, length: int) -> Any:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx, parameters.n_seq_max = batch * length, batch
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
        context = llama_cpp.llama_init_from_model(self.model, parameters)
        if not context:
            raise RuntimeError(f"llama.cpp makes no context for {batch} x {length} tokens")
        return context

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        width = max(1, BATCH // len(tokens))
        for start in range(0, tokens.shape[1], width):
            self.extend(tokens[:, start : start + width])
        batch, last = len(tokens), (tokens.shape[1] - 1) % width
        rows = [sequence * (last + 1) + last for sequence in range(batch)]
        pointers = [llama_cpp.llama_get_logits_ith(self.context, row) for row in rows]
        return np.stack([np.ctypeslib.as_array(p, (self.vocab,)) for p in pointers])

    def extend(self, tokens: np.ndarray) -> None:
        """One llama_decode of tokens [batch, T], one sequence after the other."""
        batch, width = tokens.shape
        self.copy(self.batch.token, tokens)
        self.copy(self.batch.pos, np.tile(np.arange(self.length, self.length + width), batch))
        self.copy(self.batch.n_seq_id, np.ones(tokens.size))
        self.copy(self.batch.logits, np.tile(np.arange(width) == width - 1, batch))
        for i in range(tokens.size):
            self.batch.seq_id[i][0] = i // width
        self.batch.n_tokens = tokens.size
        code = llama_cpp.llama_decode(self.context, self.batch)
        if code != 0:
            raise RuntimeError(f"llama_decode returned {code}")
        self.length += width

    def copy(self, field: ctypes._Pointer[Any], values: np.ndarray) -> None:
        np.ctypeslib.as_array(field, (values.size,))[:] = values.reshape(-1)


def find_features(text: str) -> list[str]:
    """The features that llama.cpp was built for: "CPU : AVX2 = 1 | BMI2 = 0 |" -> ["AVX2"]."""
    pairs = [word.rpartition(":")[2].partition("=") for word in text.split("|")]
    return [name.strip() for name, _, value in pairs if value.strip() == "1"]


if __name__ == "__main__":
    serve(LlamaCpp)
