"""Tokens per second beside what the machine can give, all measured in the same run.

    pp512   a prompt of 512 tokens, from start to first token       (llama-bench's names)
    tg128   128 tokens, one by one, after a prompt of one token

Decoding one sequence reads every weight once per token, so its limit is memory bandwidth over
the stored bytes of the weights; what an engine unpacks into more bytes counts against it. (A
model that fits into the processor's caches can pass that limit.) A prompt multiplies: its limit
is the rate of XLA's own matrix product, in the type that the model multiplies in, over two
operations per weight and token. Each figure is the median of several runs, with the extremes.
"""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from fast.engine import Engine
from reference.calibrate import Progress, no_progress
from reference.checkpoint import Checkpoint
from reference.errors import PlanishError
from reference.generate import Stop
from reference.sampling import Sampling
from reference.shapes import block_shapes, outer_shapes
from reference.tensorfile import DTYPES

RUNS = 5
PROMPT_TOKENS, NEW_TOKENS = 512, 128
READ_BYTES = 2**29  # larger than any cache
# name -> (module, how to get it); measuring them is still to come
PEERS = {
    "llama.cpp": ("llama_cpp", "pip install llama-cpp-python"),
    "openvino": ("openvino_genai", "pip install openvino-genai optimum-intel"),
    "ctranslate2": ("ctranslate2", "pip install ctranslate2"),
    "pytorch": ("torch", "pip install torch transformers"),
}


@dataclass(frozen=True)
class Row:
    """One test of one engine. Rates are tokens per second; `note` says why there are none."""

    engine: str
    test: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    runs: int = 0
    percent_of_limit: float | None = None
    limited_by: str | None = None
    load_seconds: float | None = None
    compile_seconds: float | None = None
    bytes_per_token: int | None = None
    note: str | None = None


def run(
    checkpoint: Checkpoint, peers: Iterable[str] = (), progress: Progress = no_progress
) -> dict[str, Any]:
    """Everything: {rows, limits, machine}, ready for JSON."""
    others = [peer_row(name) for name in peers]  # an unknown name is refused before measuring
    bounds = limits(progress)
    rows = [*measure(checkpoint, bounds, progress), *others]
    return {"rows": [asdict(row) for row in rows], "limits": bounds, "machine": machine()}


def peer_row(name: str) -> Row:
    """What stands in the table for another engine; raises PlanishError for an unknown name."""
    if name not in PEERS:
        raise PlanishError(
            "unknown", name="peers", expected=f"some of {', '.join(PEERS)}", found=repr(name)
        )
    module, command = PEERS[name]
    if importlib.util.find_spec(module) is None:
        return Row(name, "-", note=f"not installed: {command}")
    return Row(name, "-", note="installed, but not measured yet")


def measure(
    checkpoint: Checkpoint, bounds: dict[str, float], progress: Progress = no_progress
) -> list[Row]:
    """The fast engine's two rows."""
    engine = Engine(checkpoint)
    longest = checkpoint.config.max_positions
    prompt_length, new = min(PROMPT_TOKENS, longest), min(NEW_TOKENS, longest - 1)
    prefill = partial(prefill_rate, engine, random_prompt(engine, prompt_length))
    decode = partial(decode_rate, engine, random_prompt(engine, 1), new)
    prefill(), decode()  # compiles
    spent = {
        "load_seconds": engine.load_seconds,
        "compile_seconds": engine.compile_seconds,
        "bytes_per_token": bytes_per_token(checkpoint),
    }
    bandwidth, rate, kind = bounds["memory_read_bytes_per_second"], *product_limit(checkpoint)
    per_second = bounds[rate] / (2 * weights_per_token(checkpoint))
    name = f"planish {scheme(checkpoint)}"
    rows = (
        (f"pp{prompt_length}", prefill, per_second, f"XLA's {kind} product"),
        (f"tg{new}", decode, bandwidth / spent["bytes_per_token"], "memory"),
    )
    return [
        summarize(name, test, timed(run, progress, test), limit, by, spent)
        for test, run, limit, by in rows
    ]


def timed(run: Callable[[], float], progress: Progress, title: str) -> list[float]:
    """Rates of several runs."""
    return [run() for _ in progress(range(RUNS), title)]


def summarize(
    engine: str, test: str, rates: list[float], limit: float, by: str, spent: dict[str, Any]
) -> Row:
    """Median, extremes, and how much of the limit the median reaches."""
    median = statistics.median(rates)
    return Row(
        engine,
        test,
        median,
        min(rates),
        max(rates),
        len(rates),
        100 * median / limit,
        by,
        **spent,
    )


def prefill_rate(engine: Engine, prompt: list[int]) -> float:
    """Prompt tokens per second, until the first new token is there."""
    start = time.perf_counter()
    next(engine.generate([prompt], Stop(1, ignore_eos=True), Sampling()))
    return len(prompt) / (time.perf_counter() - start)


def decode_rate(engine: Engine, prompt: list[int], new: int) -> float:
    """New tokens per second, one sequence, counted behind the first one."""
    steps = engine.generate([prompt], Stop(new + 1, ignore_eos=True), Sampling())
    next(steps)
    start = time.perf_counter()
    count = sum(1 for _ in steps)
    return count / (time.perf_counter() - start)


def random_prompt(engine: Engine, length: int) -> list[int]:
    return np.random.default_rng(0).integers(0, engine.config.vocab_size, length).tolist()


def limits(progress: Progress = no_progress) -> dict[str, float]:
    """What this machine gives at its best of several runs: bytes read, operations, per second."""
    measures: dict[str, Callable[[], float]] = {
        "memory_read_bytes_per_second": memory_read,
        "float32_operations_per_second": partial(product, jnp.float32, jnp.float32),
        "int8_operations_per_second": partial(product, jnp.int8, jnp.int32),
    }
    return {name: measures[name]() for name in progress(list(measures), "limits")}


def memory_read() -> float:
    """Bytes per second of summing an array much larger than the caches, on every core."""
    values = jax.device_put(np.ones((64, READ_BYTES // 4 // 64), np.float32))
    return READ_BYTES / fastest(jax.jit(lambda x: x.sum(axis=1)), values)


def product(
    kind: Any, total: Any, rows: int = 512, inputs: int = 2048, outputs: int = 5632
) -> float:
    """Operations per second of XLA's matrix product, [512, 2048] x [5632, 2048]."""
    x, w = jnp.ones((rows, inputs), kind), jnp.ones((outputs, inputs), kind)
    contract = (((1,), (1,)), ((), ()))
    dot = jax.jit(lambda x, w: lax.dot_general(x, w, contract, preferred_element_type=total))
    return 2 * rows * inputs * outputs / fastest(dot, x, w)


def fastest(function: Callable[..., jax.Array], *arguments: jax.Array) -> float:
    """Seconds of the quickest of several calls, compiled beforehand."""
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def bytes_per_token(checkpoint: Checkpoint) -> int:
    """Stored bytes that one token must read: all but the embeddings, of which it reads a row.

    A tied embedding is read whole, as the head, unless the head has codes of its own.
    """
    config, rows_only = checkpoint.config, {checkpoint.prefix("embed") + ".weight"}
    if config.tie_embeddings and checkpoint.prefix("head") + ".weight" not in checkpoint.entries:
        rows_only = set()
    if "positions" in outer_shapes(config):
        rows_only.add(checkpoint.prefix("positions") + ".weight")
    return sum(
        math.prod(entry.shape) * DTYPES[entry.dtype].itemsize
        for name, entry in checkpoint.entries.items()
        if name not in rows_only
    )


def weights_per_token(checkpoint: Checkpoint) -> int:
    """Weights that each prompt token is multiplied by; the head takes part for the last only."""
    shapes = block_shapes(checkpoint.config).values()
    return checkpoint.config.num_layers * sum(math.prod(shape) for shape, _ in shapes)


def product_limit(checkpoint: Checkpoint) -> tuple[str, str]:
    """Which measured rate bounds a prompt: int8 where activations are, else float32."""
    activation = (checkpoint.quantization or {}).get("activation", "float")
    kind = "float32" if activation == "float" else "int8"
    return f"{kind}_operations_per_second", kind


def scheme(checkpoint: Checkpoint) -> str:
    return (checkpoint.quantization or {}).get("recipe", "float")


def machine() -> dict[str, Any]:
    """Where it was measured."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
    }


def cpu_name() -> str:
    """The model as Linux tells it, else as Python does."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line.partition(":")[2].strip() for line in file if line[:10] == "model name"]
    except OSError:
        lines = []
    return lines[0] if lines else platform.processor() or platform.machine()
