"""llama.cpp on a GGUF file and planish's windows: perplexity and new tokens per second.

It runs in a process of its own, in which a crash of the library is no crash of ours. A build for
AMX may die of an illegal instruction; then it is started again without repacked weights, as
compare/bench/peers/llama_cpp.py explains.

    python -m planish.compare.quality.llama_cpp < {"path", "windows", "threads", "repacked"}
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.quality.measure import PROMPT, RUNS, STEPS
from planish.reference.text.evaluate import window_nll

LONGEST_WAIT = 900  # seconds


@dataclass(frozen=True, kw_only=True)
class PeerFigures:
    """What llama.cpp makes of the file; `about` names its version and the instructions it uses."""

    perplexity: float
    tokens_per_second: float
    about: str


def is_installed() -> bool:
    return importlib.util.find_spec("llama_cpp") is not None


def measure_peer(path: Path, windows: Sequence[Sequence[int]], threads: int) -> PeerFigures | str:
    """The figures, or in a line why there are none."""
    for repacked in (True, False):
        request = {"path": str(path), "threads": threads, "repacked": repacked}
        request["windows"] = [list(map(int, window)) for window in windows]
        try:
            done = subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=LONGEST_WAIT,
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {LONGEST_WAIT} s"
        if done.returncode == 0:
            return PeerFigures(**json.loads(done.stdout.splitlines()[-1]))
        if done.returncode > 0:
            break
    last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return last if done.returncode > 0 else f"it dies of signal {-done.returncode}"


class GgufModel:
    """A file, and one context of one sequence."""

    def __init__(self, path: str, longest: int, threads: int, repacked: bool):
        import llama_cpp as library

        self.library = library
        library.llama_backend_init()
        parameters = library.llama_model_default_params()
        parameters.use_extra_bufts = repacked
        self.model = library.llama_model_load_from_file(path.encode(), parameters)
        if not self.model:
            raise RuntimeError("llama.cpp does not load the file")
        options = library.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = longest
        options.n_threads = options.n_threads_batch = threads
        self.context = library.llama_init_from_model(self.model, options)
        self.vocab = library.llama_vocab_n_tokens(library.llama_model_get_vocab(self.model))
        self.batch, self.length = library.llama_batch_init(longest, 0, 1), 0

    def clear(self) -> None:
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        self.length = 0

    def extend(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [T, V] of more tokens; valid until the next call."""
        for place, token in enumerate(tokens):
            self.batch.token[place], self.batch.pos[place] = token, self.length + place
            self.batch.n_seq_id[place], self.batch.logits[place] = 1, 1
            self.batch.seq_id[place][0] = 0
        self.batch.n_tokens = len(tokens)
        if code := self.library.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self.length += len(tokens)
        pointer = self.library.llama_get_logits(self.context)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (len(tokens), self.vocab))

    def decoding_rate(self, prompt: Sequence[int], steps: int) -> float:
        """Greedy tokens per second after a prompt, which is not counted."""
        self.clear()
        token = int(self.extend(prompt)[-1].argmax())
        start = time.perf_counter()
        for _ in range(steps):
            token = int(self.extend([token])[-1].argmax())
        return steps / (time.perf_counter() - start)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The figures of the child."""
    windows, repacked = request["windows"], request["repacked"]
    longest = max(*map(len, windows), PROMPT + STEPS)
    model, losses = GgufModel(request["path"], longest, request["threads"], repacked), []
    for window in windows:
        model.clear()
        losses.append(window_nll(model.extend(window), window))
    rates = [model.decoding_rate(windows[0][:PROMPT], STEPS) for _ in range(RUNS)]
    name = f"llama-cpp-python {model.library.__version__}"
    return {
        "perplexity": float(np.exp(np.concatenate(losses).mean())),
        "tokens_per_second": float(np.median(rates[1:])),
        "about": name if repacked else f"{name}, weights not repacked",
    }


if __name__ == "__main__":
    print(json.dumps(answer(json.load(sys.stdin))))
