"""What an order of inputs (act order) adds to a linear, in CPU time.

    python -m planish.compare.bench.orders KERNELS

measures W4A16's down_proj [N, K] of two sizes without an order, in different weights one after the
other, and, on linears of K inputs and so few outputs that their product is small, what an order
adds: the gather of each row, and the check of the order. KERNELS is a directory for libraries. One
line for each: engine, size, rows, microseconds of down_proj, of the order, and its share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from planish.compare.bench.sizes import MODEL_SIZES
from planish.fast.model.weights import place_block
from planish.fast.native.library import choose_kernels
from planish.fast.native.linear import linear as native_linear
from planish.fast.xla.linear import linear as xla_linear
from planish.reference.linear import Linear
from planish.reference.quantized import from_codes, to_layout
from planish.reference.scheme import int4

SIZES, ROWS = ("110M", "1.1B"), (1, 512)
FEW_OUTPUTS, LINEARS, ROUNDS, SECONDS = 16, 8, 7, 0.7

Run = Callable[[jax.Array, list[Linear]], jax.Array]


def draw_linears(outputs: int, inputs: int, native: bool, ordered: bool) -> list[Linear]:
    """LINEARS random W4A16 linears, each with an order of its own if `ordered`."""
    rng, found = np.random.default_rng(0), list[Linear]()
    for _ in range(LINEARS):
        codes = rng.integers(0, 16, (outputs, inputs), np.uint8)
        scale = rng.uniform(0.001, 0.01, (outputs, inputs // 128)).astype(np.float16)
        weight = from_codes(codes, scale, None, int4())
        order = rng.permutation(inputs).astype(np.int32)
        if ordered:
            scheme = replace(weight.scheme, act_order=True)
            weight = replace(weight, scheme=scheme, permutation=order)
        found.append(Linear(to_layout(weight, "tiles") if native else weight))
    placed: list[Linear] = jax.tree.map(jnp.asarray, place_block(found))
    return placed


def measure(
    outputs: int, inputs: int, rows: int, native: bool, forms: Sequence[bool]
) -> np.ndarray:
    """CPU seconds of a linear, [ROUNDS, forms], the forms in turns: with an order, or without."""
    apply = native_linear if native else xla_linear

    @jax.jit
    def run(x: jax.Array, layers: list[Linear]) -> jax.Array:
        y = jnp.zeros((1, rows, outputs))
        for layer in layers:
            y = apply(x, layer, y)
        return y

    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, rows, inputs), np.float32))
    drawn = [draw_linears(outputs, inputs, native, ordered) for ordered in forms]
    once = min(time_runs(run, x, layers, repeats=1) for layers in drawn * 2)  # the first compiles
    repeats = max(1, int(SECONDS / ROUNDS / max(once, 1e-6)))
    turns = [[time_runs(run, x, layers, repeats) for layers in drawn] for _ in range(ROUNDS)]
    return np.array(turns) / LINEARS


def time_runs(run: Run, x: jax.Array, layers: list[Linear], repeats: int) -> float:
    """CPU seconds of one run, of all threads."""
    start = time.process_time()
    for _ in range(repeats):
        run(x, layers).block_until_ready()
    return (time.process_time() - start) / repeats


def main(words: Sequence[str]) -> None:
    jax.config.update("jax_platforms", "cpu")
    choose_kernels("native", Path(words[0]))
    for name, native in (("native", True), ("xla", False)):
        for size, rows in ((MODEL_SIZES[size], rows) for size in SIZES for rows in ROWS):
            whole = 1e6 * np.median(measure(size.hidden, size.ffn, rows, native, (False,)))
            few = measure(FEW_OUTPUTS, size.ffn, rows, native, (False, True))
            added = 1e6 * np.median(few[:, 1] - few[:, 0])
            times = f"{whole:9.1f} us, order {added:7.1f} us, {added / whole:.1%}"
            print(f"{name:6} {size.name:5} rows {rows:3}: {times}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
