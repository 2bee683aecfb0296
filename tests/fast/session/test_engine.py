"""The engine as a whole: equal to the reference and to transformers, in place, compiled once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from planish.fast.model import losses as fast_losses
from planish.fast.model import transformer as fast_model
from planish.fast.model.backend import Positions
from planish.fast.model.weights import place_linear
from planish.fast.session import chunks
from planish.fast.session.chunks import chunk_size
from planish.fast.session.engine import Engine
from planish.fast.session.slots import empty_cache
from planish.fast.xla import backend as xla_backend
from planish.fast.xla.cache import Slots
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import OutOfMemoryError, PromptError, SamplingError
from planish.reference.files.load import Checkpoint, load_block, load_weights, open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.model import transformer as reference_transformer
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.generate import Stop
from planish.reference.text.sampling import Sampling

GOLDEN = Path(__file__).parents[2] / "golden"
GOLDENS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
LLAMA = GOLDEN / "llama-tied-grouped"
RECIPES = ("float", "W8A8", "O2", "O3", "W8A16", "W4A16", "W4A8")


@pytest.fixture(scope="module", params=RECIPES)
def quantized(request, tmp_path_factory) -> Path:
    """The golden Llama by a recipe."""
    source, target = open_checkpoint(LLAMA), tmp_path_factory.mktemp("models") / request.param
    group = 32 if request.param.startswith("W4") else None
    samples = [np.arange(5, 205) % 256, np.arange(200) * 7 % 256]
    with CheckpointWriter(target, LLAMA) as writer:
        chosen = recipe(request.param, group_size=group)
        quantize_checkpoint(source, writer, chosen, samples, layout="canonical")
    return target


@pytest.fixture(scope="module")
def llama() -> Engine:
    return Engine(open_checkpoint(LLAMA))


@pytest.fixture(params=["xla", "native"])
def make_engine(request) -> Callable[[Checkpoint], Engine]:
    """The engine in both of its forms."""
    if request.param == "native":
        request.getfixturevalue("kernels")
    return lambda checkpoint: Engine(checkpoint, native=request.param == "native")


def tokens(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, length).tolist()


def generated(engine, prompts, stop, sampling=Sampling()) -> dict[int, list[int]]:  # noqa: B008
    rows: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    for row, token in engine.generate(prompts, stop, sampling):
        rows[row].append(token)
    return rows


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() < 2e-5 * np.ptp(expected))


@pytest.mark.optimized(5)
@pytest.mark.matrix(54, 5)
@pytest.mark.parametrize("name", GOLDENS)
def test_logits_equal_those_of_transformers(name, make_engine):
    golden = np.load(GOLDEN / name / "golden.npz")
    engine = make_engine(open_checkpoint(GOLDEN / name))
    found = engine.forward(golden["tokens_long"].tolist())
    assert near(found[golden["positions_long"]], golden["logits_long"])


def test_there_are_goldens():
    assert len(GOLDENS) >= 60


@pytest.mark.matrix(186, 27)
@pytest.mark.parametrize("name", GOLDENS)
def test_a_batch_equals_transformers_and_goes_on_as_the_reference(name, make_engine):
    golden, checkpoint = np.load(GOLDEN / name / "golden.npz"), open_checkpoint(GOLDEN / name)
    engine, config, weights = make_engine(checkpoint), checkpoint.config, load_weights(checkpoint)
    prompts = [golden[key].tolist() for key in ("tokens_short", "batch_tokens_1", "batch_tokens_2")]
    ends = golden["logits_short"][-1], golden["batch_logits_1"], golden["batch_logits_2"]
    logits, cache = engine.prefill_batch(prompts, Stop(3))
    pasts = [reference_transformer.prefill(config, weights, prompt)[1] for prompt in prompts]
    assert all(map(near, logits, ends))
    for step, token in enumerate(golden["tokens_short"][:2]):
        positions = np.array([len(prompt) + step for prompt in prompts])
        logits, cache = engine.decode_step(np.full(3, token), positions, cache)
        for row, past in enumerate(pasts):
            expected, pasts[row] = reference_transformer.decode_step(config, weights, token, past)
            assert near(logits[row], expected)


BY_LENGTH = {"llama-dynamic-rope": 128, "phi3-longrope-partial": 64}  # where other angles begin


@pytest.mark.whole
@pytest.mark.parametrize("name", BY_LENGTH)
def test_positions_that_depend_on_the_length_change_while_tokens_come(name, make_engine):
    checkpoint, prompts = open_checkpoint(GOLDEN / name), [tokens(BY_LENGTH[name] - 5), tokens(9)]
    found = generated(make_engine(checkpoint), prompts, Stop(12, ignore_eos=True))
    expected = generated(ReferenceEngine(checkpoint), prompts, Stop(12, ignore_eos=True))
    assert found == expected


@pytest.mark.parametrize("name", BY_LENGTH)
def test_positions_of_a_prompt_in_chunks_depend_on_its_whole_length(name, monkeypatch):
    golden = np.load(GOLDEN / name / "golden.npz")
    monkeypatch.setattr(chunks, "PREFILL_CHUNK", 128)
    found = Engine(open_checkpoint(GOLDEN / name)).forward(golden["tokens_long"].tolist())
    assert near(found[golden["positions_long"]], golden["logits_long"])


@pytest.mark.matrix(2)
def test_heads_too_wide_for_the_kernels_are_left_to_xla(make_llama, make_engine):
    checkpoint = open_checkpoint(make_llama(head_dim=272))
    engine = make_engine(checkpoint)
    *_, (_, cache) = engine.prefill(tokens(9), 9)
    assert isinstance(cache.layers[0], Slots)
    assert near(engine.forward(tokens(9)), ReferenceEngine(checkpoint).forward(tokens(9)))


@pytest.mark.whole
def test_prefill_and_decode_equal_forward(llama):
    prompt = tokens(40)
    expected = llama.forward(prompt)
    logits, cache = list(llama.prefill(prompt[:33], 40))[-1]
    np.testing.assert_allclose(logits[-1], expected[32], atol=2e-4)
    for position in range(33, 40):
        step = np.array([prompt[position]]), np.array([position])
        logits, cache = llama.decode_step(*step, cache)
        np.testing.assert_allclose(logits[0], expected[position], atol=2e-4)


@pytest.mark.matrix(18, 5)
def test_greedy_tokens_equal_the_reference(quantized, make_engine):
    checkpoint, prompts = open_checkpoint(quantized), [tokens(5), tokens(19), tokens(1)]
    found = generated(make_engine(checkpoint), prompts, Stop(12))
    assert found == generated(ReferenceEngine(checkpoint), prompts, Stop(12))
    assert all(found.values())


@pytest.mark.matrix(8)
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.9, 40, 0.95), (1.4, 0, 1.0), (1.0, 0, 0.3), (0.01, 3, 1.0)],
)
def test_a_seed_gives_the_tokens_of_the_reference(make_engine, temperature, top_k, top_p):
    sampling = Sampling(temperature, top_k=top_k, top_p=top_p, seed=7)
    prompts, llama = [tokens(6), tokens(9)], make_engine(open_checkpoint(LLAMA))
    reference = ReferenceEngine(open_checkpoint(LLAMA))
    found = generated(llama, prompts, Stop(20), sampling)
    assert found == generated(reference, prompts, Stop(20), sampling)


@pytest.mark.matrix(4)
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.2, "min_p": 0.2},
        {"repetition_penalty": 1.5},
        {"temperature": 1.0, "presence_penalty": 1.0, "frequency_penalty": 0.5, "top_k": 20},
        {"logit_bias": ((3, 5.0), (7, -100.0)), "frequency_penalty": 2.0},
    ],
)
def test_penalties_and_min_p_give_the_tokens_of_the_reference(make_engine, settings):
    sampling, prompts = Sampling(seed=5, **settings), [tokens(6), tokens(9)]
    llama, reference = (of(open_checkpoint(LLAMA)) for of in (make_engine, ReferenceEngine))
    found = generated(llama, prompts, Stop(20), sampling)
    assert found == generated(reference, prompts, Stop(20), sampling)
    assert found != generated(llama, prompts, Stop(20), Sampling(sampling.temperature, seed=5))


def test_another_seed_gives_other_tokens(make_engine):
    llama, prompts = make_engine(open_checkpoint(LLAMA)), [tokens(6)]
    first, second = (generated(llama, prompts, Stop(20), Sampling(1.0, seed=s)) for s in (7, 8))
    assert first != second


def test_the_cache_keeps_its_buffers_and_sixty_four_steps_compile_one_program(llama):
    _, cache = list(llama.prefill(tokens(10), 80))[-1]
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    programs = None
    for position in range(10, 74):
        _, cache = llama.decode_step(np.array([1]), np.array([position]), cache)
        programs = programs or len(llama.programs.known())
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)] == pointers
    assert len(llama.programs.known()) == programs


@pytest.mark.whole
def test_a_consumed_cache_is_refused(llama):
    _, cache = list(llama.prefill(tokens(4), 8))[-1]
    llama.decode_step(np.array([1]), np.array([4]), cache)
    with pytest.raises((RuntimeError, ValueError), match="deleted|donated"):
        llama.decode_step(np.array([1]), np.array([5]), cache)


def test_prompts_of_every_length_compile_a_bounded_number_of_programs():
    sizes = {chunk_size(length) for length in range(1, 513)}
    assert sizes == {8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512}
    assert all(chunk_size(length) >= length for length in range(1, 513))


@pytest.mark.matrix(7)
def test_a_padded_chunk_changes_no_logit(quantized, make_engine):
    """Padding repeats the last token: per_tensor scales must not see it as new."""
    checkpoint, prompt = open_checkpoint(quantized), tokens(9)
    expected = ReferenceEngine(checkpoint).forward(prompt)
    found = make_engine(checkpoint).forward(prompt)
    assert np.abs(found - expected).max() < 0.05 * np.ptp(expected)
    assert np.abs(found - expected).mean() < 2e-3 * np.ptp(expected)


def test_a_long_prompt_is_computed_in_chunks(llama, monkeypatch):
    expected = llama.forward(tokens(100))
    monkeypatch.setattr(chunks, "PREFILL_CHUNK", 32)
    np.testing.assert_allclose(llama.forward(tokens(100)), expected, atol=2e-4)


def test_eos_ends_a_row_and_not_its_neighbours(make_engine):
    prompts, llama = [tokens(5), tokens(19)], make_engine(open_checkpoint(LLAMA))
    free = generated(llama, prompts, Stop(10, ignore_eos=True))
    ending = next(token for token in free[0] if token not in free[1])
    engine = make_engine(open_checkpoint(LLAMA))
    engine.config = _with_eos(engine.config, (ending,))
    stopped = generated(engine, prompts, Stop(10))
    assert stopped[0] == free[0][: free[0].index(ending)]
    assert stopped[1] == free[1]


def _with_eos(config, ids):
    return replace(config, eos_token_ids=ids)


@pytest.mark.matrix(3)
@pytest.mark.parametrize(("length", "new"), [(512, 1), (511, 2), (500, 13)])
def test_what_just_fits_the_cache_is_generated(llama, length, new):
    assert len(generated(llama, [tokens(length)], Stop(new, ignore_eos=True))[0]) == new


@pytest.mark.parametrize(("length", "new"), [(513, 0), (513, 1), (512, 2), (500, 14)])
def test_what_does_not_fit_is_refused_before_it_starts(llama, length, new):
    with pytest.raises(PromptError, match="do not fit.*at most 512 positions"):
        next(iter(llama.generate([tokens(length)], Stop(new), Sampling())))


def test_no_new_tokens_is_no_work(llama):
    assert generated(llama, [tokens(3)], Stop(0)) == {0: []}


def test_negative_new_tokens_are_refused(llama):
    with pytest.raises(SamplingError, match="max_new_tokens"):
        generated(llama, [tokens(3)], Stop(-1))


@pytest.mark.parametrize("token", [-1, 256])
def test_a_token_outside_the_vocabulary_is_refused(llama, token):
    with pytest.raises(PromptError, match="0..255"):
        llama.forward([1, token])


def test_int8_codes_are_mapped_and_not_copied(quantized):
    checkpoint = open_checkpoint(quantized)
    scheme = checkpoint.scheme("up", 0)
    if scheme is None or scheme.bits != 8:
        pytest.skip("only INT8 codes are stored in the file as the engine reads them")
    linear = place_linear(load_block(checkpoint, 0).mlp.up)
    codes = linear.weight.codes
    placed = jax.device_put(codes, may_alias=True)
    assert codes.ctypes.data % 64 == 0
    assert placed.unsafe_buffer_pointer() == codes.ctypes.data


def test_compile_time_is_counted_apart(llama):
    llama.forward(tokens(20))
    spent = llama.compile_seconds
    assert spent > 0
    llama.forward(tokens(21))
    assert llama.compile_seconds == spent


@pytest.mark.matrix(6)
@pytest.mark.parametrize(("length", "rows"), [(71, 1000), (599, 100)])
def test_losses_are_the_references(make_engine, make_llama, monkeypatch, length, rows):
    checkpoint = open_checkpoint(make_llama(max_position_embeddings=600))
    monkeypatch.setattr(fast_losses, "LOGITS", rows * checkpoint.config.vocab_size)
    text = tokens(length)
    found = make_engine(checkpoint).losses(text)
    assert found.shape == (length - 1,)
    assert found == pytest.approx(ReferenceEngine(checkpoint).losses(text), abs=3e-5)
    assert len(make_engine(checkpoint).losses(text[:1])) == 0


def test_losses_never_hold_the_logits_of_a_chunk(make_llama, monkeypatch):
    checkpoint = open_checkpoint(make_llama(max_position_embeddings=600))
    monkeypatch.setattr(fast_losses, "LOGITS", 4 * checkpoint.config.vocab_size)
    config, shape = checkpoint.config, (1, 512)
    ids = jax.ShapeDtypeStruct(shape, np.int32)
    engine = Engine(checkpoint)
    cache = empty_cache(config, 1, 512, xla_backend)
    where = Positions(ids, engine.tables.of_prompt(512, 512))
    program = jax.make_jaxpr(fast_model.losses, static_argnums=(0, 5))(
        config, engine.weights, ids, cache, where, xla_backend, ids
    )
    assert f"f32[1,4,{config.vocab_size}]" in str(program)
    assert f"[1,512,{config.vocab_size}]" not in str(program)


def test_a_cache_without_room_fails_before_the_first_token(make_engine):
    checkpoint = open_checkpoint(LLAMA)
    endless = replace(checkpoint, config=replace(checkpoint.config, max_positions=2**60))
    engine = make_engine(endless)
    with pytest.raises(OutOfMemoryError, match="fewer max_new_tokens"):
        next(engine.generate([[1]], Stop(2**55), Sampling()))
