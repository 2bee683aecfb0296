"""Layers with a sliding window keep rings of slots: no result differs by a bit from long caches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.fast.native import library
from planish.fast.session import chunks, slots
from planish.fast.session.engine import Engine
from planish.fast.session.slots import cache_bytes, ring_slots
from planish.fast.xla import backend as xla
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

GOLDENS = Path(__file__).parents[2] / "golden"
CHUNK, LENGTH, STEPS = 64, 1100, 140  # the steps pass a whole ring of the smallest window
CACHES = {
    "float32": ("float", "float32"),
    "int8": ("float", "int8"),
    "int8 attention": ("int8", "int8"),
    "static attention": ("int8", "int8_static"),
}
CASES = [(window, cache) for window in (100, 8, 300, 256) for cache in CACHES]
WINDOWED = (
    *("mistral-window", "gemma2-caps", "gemma3_text-two-bases", "phi3-window"),
    *("starcoder2-window", "qwen2-windows-untied", "qwen3-biases-window-untied"),
    *("smollm3-windows-biases", "mixtral-window-untied"),
)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 64 tokens, so that short prompts go round the ring several times."""
    monkeypatch.setattr(chunks, "PREFILL_CHUNK", CHUNK)
    monkeypatch.setattr(slots, "PREFILL_CHUNK", CHUNK)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random Llama with static scales of attention."""
    root = tmp_path_factory.mktemp("rings")
    source = open_checkpoint(make_llama(root, "source", max_position_embeddings=2048))
    with CheckpointWriter(root / "quantized", source.path) as writer:
        samples = [np.arange(64) % 256]
        quantize_checkpoint(source, writer, recipe("O3", attention="int8"), samples)
    return open_checkpoint(root / "quantized")


def with_cache(found: Checkpoint, cache: str) -> Checkpoint:
    attention, kv_cache = CACHES[cache]
    return replace(found, config=replace(found.config, attention=attention, kv_cache=kv_cache))


def with_windows(found: Checkpoint, *windows: int | None) -> Checkpoint:
    pairs = zip(found.config.layers, windows, strict=True)
    layers = tuple(replace(kind, window=window) for kind, window in pairs)
    return replace(found, config=replace(found.config, layers=layers))


def draw_tokens(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def run_prompt(engine: Engine, length: int, steps: int = STEPS) -> np.ndarray:
    """Logits of a prompt's last chunks and of the steps after it: [T, V]."""
    tokens, found = draw_tokens(length), []
    for logits, state in engine.prefill(tokens[:-steps], length, all_logits=True):
        found.append(logits)
        cache = state
    for position in range(length - steps, length):
        step = np.array(tokens[position : position + 1]), np.array([position])
        logits, cache = engine.decode_step(*step, cache)
        found.append(logits)
    return np.concatenate(found)


def run_batch(engine: Engine, length: int) -> np.ndarray:
    """Logits of steps of three rows at distant positions: [steps, B, V]."""
    lengths = (length // 2, 9, length // 3)
    prompts = [draw_tokens(count, seed) for seed, count in enumerate(lengths)]
    logits, cache = engine.prefill_batch(prompts, Stop(6))
    found, positions = [logits], np.array(lengths)
    for step in range(5):
        logits, cache = engine.decode_step(found[-1].argmax(axis=1), positions + step, cache)
        found.append(logits)
    return np.stack(found)


def with_long_caches(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, run: Callable[[Engine], np.ndarray]
) -> np.ndarray:
    with monkeypatch.context() as patch:
        patch.setattr(slots, "ring_slots", lambda window, count, ahead=0: count)
        return run(engine)


def test_a_ring_has_room_for_the_window_and_a_chunk_in_steps_of_128():
    sizes = [(None, 9000), (4096, 16384), (100, 2048), (8, 16384), (100, 512), (8, 640)]
    assert [ring_slots(*size, 512) for size in sizes] == [9000, 4608, 640, 640, 512, 640]


@pytest.mark.whole(5)
@pytest.mark.parametrize(("window", "cache"), CASES)
def test_logits_are_those_of_long_caches_in_xla(model, monkeypatch, window, cache):
    engine = Engine(with_windows(with_cache(model, cache), window, None))
    expected = with_long_caches(monkeypatch, engine, lambda one: run_prompt(one, LENGTH))
    np.testing.assert_array_equal(run_prompt(engine, LENGTH), expected)


@pytest.fixture
def each_set(kernels, kernels_directory):
    """Calls a function with each instruction set, and with emulated tiles."""

    def run(check: Callable[[], None]) -> None:
        try:
            for name in [*kernels, "amx_emulated"]:
                library.choose_kernels(name, kernels_directory)
                check()
        finally:
            library.choose_kernels("auto", kernels_directory)

    return run


@pytest.mark.whole(5)
@pytest.mark.parametrize(("window", "cache"), CASES)
def test_logits_are_those_of_long_caches_in_every_instruction_set(
    model, monkeypatch, each_set, window, cache
):
    engine = Engine(with_windows(with_cache(model, cache), window, None), native=True)

    def check() -> None:
        for run in (run_prompt, run_batch):
            expected = with_long_caches(monkeypatch, engine, lambda one, run=run: run(one, LENGTH))
            np.testing.assert_array_equal(run(engine, LENGTH), expected)

    each_set(check)


@pytest.mark.whole(5)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("name", WINDOWED)
def test_goldens_with_windows_have_the_logits_of_long_caches(monkeypatch, kernels, name, native):
    engine = Engine(open_checkpoint(GOLDENS / name), native)
    run = lambda one: run_prompt(one, 500, 40)  # noqa: E731
    expected = with_long_caches(monkeypatch, engine, run)
    assert any(layer.ring for layer in engine.caches.take(1, 500).layers)
    np.testing.assert_array_equal(run(engine), expected)


def test_every_golden_with_a_window_is_here():
    found = {path.parent.name for path in GOLDENS.glob("*/config.json") if has_window(path)}
    twins = {"gemma2-small-caps", "gemma3_text-old-spelling"}  # the same windows once more
    assert found == {*WINDOWED, *twins}


def has_window(path: Path) -> bool:
    return any(kind.window for kind in open_checkpoint(path.parent).config.layers)


@pytest.mark.whole
@pytest.mark.parametrize("native", [True, False])
def test_a_long_continuation_does_not_overwrite_the_window_of_the_next(
    model, monkeypatch, kernels, native
):
    """Scoring goes back to the end of the context for each continuation."""
    engine = Engine(with_windows(model, 8, 100), native)
    context, first = draw_tokens(150), draw_tokens(300, 1)
    both = engine.score(context, [first, draw_tokens(300, 2)])
    alone = engine.score(context, [draw_tokens(300, 2)])
    np.testing.assert_array_equal(both[1].losses, alone[0].losses)


@pytest.mark.whole
def test_generation_with_windows_in_all_layers_goes_round_the_ring(model, monkeypatch, kernels):
    engine = Engine(with_windows(model, 8, 8), native=True)

    def run(one: Engine) -> np.ndarray:
        prompts = [draw_tokens(30), draw_tokens(5, 1)]
        found = list(one.generate(prompts, Stop(300, ignore_eos=True), Sampling()))
        return np.array(sorted(found, key=lambda pair: pair[0]))

    expected = with_long_caches(monkeypatch, engine, run)
    np.testing.assert_array_equal(run(engine), expected)


def test_the_bytes_of_a_cache_are_those_of_its_arrays(model):
    config = with_windows(with_cache(model, "int8"), 8, None).config
    cache = slots.empty_cache(config, 2, 1024, xla, CHUNK)
    size = sum(array.nbytes for layer in cache.layers for array in layer.arrays)
    assert cache_bytes(config, 2, 1024, xla, CHUNK) == size
    assert [layer.shape for layer in cache.layers] == [(2, 128), (2, 1024)]
    assert cache.shape == (2, 1024)
