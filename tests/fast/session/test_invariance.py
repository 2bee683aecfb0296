"""A row's result does not depend on its batch, its chunks, its padding or the number of threads.

Linears and logits are compared bit for bit. Two stated exceptions: activations with one scale for
all tokens of a chunk (per_tensor), and weight-only linears by matrix tiles, which add floats in
another order than up to 8 rows do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from planish.fast.native import linear as native
from planish.fast.native.instruction_sets import BY_NAME
from planish.fast.session import chunks
from planish.fast.session.engine import Engine
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.linear import Linear
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.methods.rtn import quantize_weight
from planish.reference.quantize.recipe import recipe
from planish.reference.quantized import to_layout
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

ROWS = (9, 8, 16, 17, 32, 33)  # around the blocks of lanes and of matrix tiles
RECIPES = ("float", "W8A8", "O1", "W8A16", "W4A16", "W4A8")
LOGITS = 1e-5  # of their range


@pytest.fixture(scope="module", params=RECIPES)
def checkpoint(request, tmp_path_factory):
    """A random Llama with heads of 16, which the kernels' cache takes, by a recipe."""
    root = tmp_path_factory.mktemp("invariance")
    source = make_llama(root, max_position_embeddings=256)
    if request.param == "float":
        return open_checkpoint(source)
    samples = [np.arange(64) % 256]
    group = 32 if request.param.startswith("W4") else None
    with CheckpointWriter(root / "quantized", source) as writer:
        chosen = recipe(request.param, group_size=group)
        quantize_checkpoint(open_checkpoint(source), writer, chosen, samples)
    return open_checkpoint(root / "quantized")


@pytest.fixture
def engine(checkpoint, kernels) -> Engine:
    return Engine(checkpoint, native=True)


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= LOGITS * np.ptp(expected))


@pytest.fixture
def same(checkpoint, kernels):
    """Whether logits are the same: to the bit, but for weight-only linears by matrix tiles."""
    name = (checkpoint.quantization or {}).get("recipe", "float")
    tiles = BY_NAME[kernels[0]].matmul == "amx" and name in ("W8A16", "W4A16")
    return close if tiles else np.array_equal


def greedy(engine: Engine, prompts: list[list[int]], new: int = 12) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    for row, token in engine.generate(prompts, Stop(new, ignore_eos=True), Sampling()):
        rows[row].append(token)
    return rows


@pytest.mark.again
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("W8A8", {}),
        ("W4A8", {"group_size": 32}),
        ("W4A8", {"group_size": 32, "activation": "per_token", "rule": "minmax"}),
        ("W8A16", {}),
        ("W4A16", {"group_size": 64}),
    ],
)
def test_a_rows_linear_is_the_same_in_every_batch(kernels, name, options):
    chosen, rng = recipe(name, **options), np.random.default_rng(0)
    weight = quantize_weight(rng.normal(size=(50, 200)).astype(np.float32), chosen.default)
    layer = Linear(to_layout(weight, "tiles"))
    x = rng.normal(size=(1, 23, 200)).astype(np.float32)
    run = jax.jit(lambda x, isa: native.linears(x, (layer,), isa=isa)[0], static_argnums=1)
    for isa in kernels:
        batched = np.asarray(run(jnp.asarray(x), isa))[0]
        copies = 9 if BY_NAME[isa].matmul == "amx" and chosen.default.activation == "float" else 1
        alone = [np.repeat(x[:, i : i + 1], copies, axis=1) for i in range(23)]
        found = [np.asarray(run(jnp.asarray(one), isa))[0, 0] for one in alone]
        np.testing.assert_array_equal(batched, np.stack(found))


@pytest.mark.matrix(6)
def test_tokens_do_not_depend_on_the_batch(engine):
    prompts = [prompt(5), prompt(19, 1), prompt(33, 2), prompt(1, 3), prompt(8, 4)]
    alone = [greedy(engine, [one])[0] for one in prompts]
    assert greedy(engine, prompts) == alone
    assert greedy(engine, prompts[::-1]) == alone[::-1]


@pytest.mark.optimized
@pytest.mark.matrix(5)
@pytest.mark.again
def test_logits_do_not_depend_on_the_batch(engine, same):
    prompts = [prompt(9), prompt(30, 1), prompt(17, 2)]
    batched, _ = engine.prefill_batch(prompts, Stop(4))
    for row, one in enumerate(prompts):
        assert same(batched[row], engine.prefill_batch([one], Stop(4))[0][0])


@pytest.mark.matrix(30)
@pytest.mark.parametrize("rows", ROWS)
def test_logits_do_not_depend_on_the_rows_of_a_step(engine, same, rows):
    """Rows at different positions, each against the same step alone."""
    prompts = [prompt(1 + row % 4, row) for row in range(rows)]
    step = np.arange(rows) % 256, np.array([len(one) for one in prompts])
    logits, _ = engine.decode_step(*step, engine.prefill_batch(prompts, Stop(2))[1])
    for row in (0, rows // 2, rows - 1):
        _, cache = engine.prefill_batch(prompts[row : row + 1], Stop(2))
        alone, _ = engine.decode_step(*(x[row : row + 1] for x in step), cache)
        assert same(logits[row], alone[0])


@pytest.mark.matrix(30)
@pytest.mark.parametrize("rows", ROWS)
def test_logits_do_not_depend_on_the_rows_of_a_chunk(engine, same, monkeypatch, rows):
    """Chunks of exactly so many tokens, without padding, against one chunk of all."""
    tokens = prompt(3 * rows)
    expected = engine.forward(tokens)
    monkeypatch.setattr(chunks, "PREFILL_CHUNK", rows)
    monkeypatch.setattr(chunks, "chunk_size", lambda count: count)
    assert same(engine.forward(tokens), expected)


@pytest.mark.optimized
@pytest.mark.matrix(13)
@pytest.mark.again
@pytest.mark.parametrize("chunk", [16, 48, 100])
def test_logits_do_not_depend_on_the_prefills_chunks(engine, same, monkeypatch, chunk):
    expected = engine.forward(prompt(200))
    monkeypatch.setattr(chunks, "PREFILL_CHUNK", chunk)
    assert same(engine.forward(prompt(200)), expected)


@pytest.mark.matrix(4)
def test_logits_do_not_depend_on_padding(engine, same, monkeypatch):
    expected = engine.forward(prompt(65))  # padded to a larger bucket
    monkeypatch.setattr(chunks, "chunk_size", lambda count: -(-count // 16) * 16)
    assert same(engine.forward(prompt(65)), expected)


@pytest.mark.matrix(4)
def test_decoding_continues_what_prefill_would_compute(engine, same):
    tokens = prompt(80)
    expected = engine.forward(tokens)
    *_, (_, cache) = engine.prefill(tokens[:70], 80)
    for position in range(70, 80):
        step = np.array([tokens[position]]), np.array([position])
        logits, cache = engine.decode_step(*step, cache)
        assert same(logits[0], expected[position])


SCRIPT = """
import os, sys
os.sched_setaffinity(0, set(map(int, sys.argv[4].split(","))))
import numpy as np
from pathlib import Path
from planish.fast.session.engine import Engine
from planish.fast.native.library import load_library
from planish.reference.files.load import open_checkpoint
load_library(Path(sys.argv[2]))
logits = Engine(open_checkpoint(sys.argv[1]), native=True).forward(list(range(100)))
np.save(sys.argv[3], logits)
"""


@pytest.mark.whole
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux's affinity")
def test_logits_do_not_depend_on_the_number_of_threads(
    checkpoint, kernels, private_cache, tmp_path
):
    """XLA's pool has as many threads as the process may use processors."""
    if checkpoint.quantization and checkpoint.quantization["recipe"] not in ("W8A8", "W4A8"):
        pytest.skip("each form of kernel once is enough")
    found, processors = [], sorted(os.sched_getaffinity(0))
    for count in sorted({1, len(processors)}):
        out, chosen = tmp_path / f"{count}.npy", ",".join(map(str, processors[:count]))
        cache = private_cache / "planish" / "kernels"
        arguments = [sys.executable, "-c", SCRIPT, checkpoint.path, cache, out, chosen]
        subprocess.run(arguments, check=True, cwd=Path(__file__).parents[3])
        found.append(np.load(out))
    for other in found[1:]:
        assert close(other, found[0])
        if checkpoint.quantization is not None:
            np.testing.assert_array_equal(other, found[0])
