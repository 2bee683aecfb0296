"""Layers in stages compute one process's numbers, bit for bit, and hold their own layers only."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from planish.fast.model.transformer import prefill
from planish.fast.parallel.leading import Followers, follow
from planish.fast.parallel.stages import Pending, SomeBlocks, stage_layers
from planish.fast.session.batching import Batching
from planish.fast.session.engine import Engine
from planish.fast.session.one_by_one import FastOneByOne
from planish.fast.session.opening import open_session
from planish.reference.errors import PlanishError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.generate import Stop
from planish.reference.text.requests import Request
from planish.reference.text.sampling import Sampling
from tests.fast.parallel.agree import quantized
from tests.fast.parallel.test_mesh import GOLDEN, GOLDENS, RECIPES
from tests.fast.parallel.threads import close_all, connected, run_all, staged

PROMPTS = ([5, 3, 9, 40, 17, 2, 60], [7, 7, 1])
LONG = np.random.default_rng(0).integers(0, 200, 1100).tolist()  # three chunks


@pytest.fixture
def pair():
    columns = connected(2)
    yield columns
    close_all(columns)


def engines(checkpoint, columns, native=True):
    return [Engine(checkpoint, native, placement=staged(column)) for column in columns]


def everything(engine):
    """What a model's programs give."""
    drawn = Sampling(temperature=0.9, seed=3)
    return [
        np.array(list(engine.generate(PROMPTS, Stop(9, ignore_eos=True), Sampling()))),
        np.array(list(engine.generate(PROMPTS, Stop(5, ignore_eos=True), drawn))),
        engine.forward(PROMPTS[0]),
        engine.losses(PROMPTS[0]),
        engine.score(PROMPTS[0], [[1, 2], [3]])[0].losses,
    ]


def check_equal(found, expected):
    for each in found:
        for a, b in zip(each, expected, strict=True):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize(
    ("layers", "stages", "sizes"),
    [(2, 2, [1, 1]), (7, 3, [3, 2, 2]), (5, 4, [2, 1, 1, 1]), (3, 1, [3])],
)
def test_layers_are_cut_evenly(layers, stages, sizes):
    found = stage_layers(layers, stages)
    assert [len(part) for part in found] == sizes
    assert [layer for part in found for layer in part] == list(range(layers))


def test_more_stages_than_layers_are_refused():
    with pytest.raises(PlanishError, match="expected at most 2, the model's layers, found 3"):
        stage_layers(2, 3)


def test_blocks_of_other_stages_are_not_read():
    read = []

    class Blocks(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    some = SomeBlocks(Blocks("abcde"), range(2, 4))
    assert (list(some), len(some), some[-1], some[:1]) == (["c", "d"], 2, "d", ["c"])
    assert set(read) == {2, 3}


def test_two_stages_agree_with_one_process(tiny_llama, tmp_path, kernels, pair):
    checkpoint = quantized(tiny_llama, "W4A8", tmp_path)
    expected = everything(Engine(checkpoint, native=True))
    both = engines(checkpoint, pair)
    check_equal(run_all([partial(everything, engine) for engine in both]), expected)
    first, last = (engine.weights for engine in both)
    assert (len(first.blocks), len(last.blocks)) == (1, 1)
    assert first.head is first.final_norm is last.embed is None
    assert [len(engine.caches.take(1, 16).layers) for engine in both] == [1, 1]


@pytest.mark.whole(15)
@pytest.mark.parametrize("name", GOLDENS)
def test_every_architecture_in_two_stages(name, tmp_path_factory, kernels, pair):
    for recipe in RECIPES:
        checkpoint = quantized(GOLDEN / name, recipe, tmp_path_factory.mktemp(recipe))
        expected = everything(Engine(checkpoint, native=True))
        both = engines(checkpoint, pair)
        check_equal(run_all([partial(everything, engine) for engine in both]), expected)


@pytest.mark.whole
@pytest.mark.parametrize("stages", [3, 7])
def test_uneven_layers_with_windows(stages, tmp_path, kernels):
    columns = connected(stages)
    checkpoint = quantized(GOLDEN / "gemma3_text-two-bases", "W8A8", tmp_path)
    expected = everything(Engine(checkpoint, native=True))
    every = engines(checkpoint, columns)
    check_equal(run_all([partial(everything, engine) for engine in every]), expected)
    close_all(columns)


@pytest.mark.whole
def test_the_first_stage_does_not_wait_for_a_chunks_result(make_llama, pair):
    checkpoint = open_checkpoint(make_llama(max_position_embeddings=1200))
    first = Engine(checkpoint, placement=staged(pair[0]))
    chunks = list(first._chunks(LONG, len(LONG), prefill))  # nobody answers
    assert [count for _, count, _ in chunks] == [512, 512, 76]
    assert all(isinstance(logits, Pending) for logits, _, _ in chunks)


@pytest.mark.whole
def test_long_prompts_agree_chunk_by_chunk(make_llama, pair):
    checkpoint = open_checkpoint(make_llama(max_position_embeddings=1200))

    def compute(engine):
        greedy = list(engine.generate([LONG], Stop(2, ignore_eos=True), Sampling()))
        return [np.array(greedy), engine.losses(LONG)]

    expected = compute(Engine(checkpoint))
    both = engines(checkpoint, pair, native=False)
    check_equal(run_all([partial(compute, engine) for engine in both]), expected)


def test_results_that_nobody_reads_do_not_disturb(pair):
    first, last = (staged(column).results for column in pair)
    unread, wanted = first.share(None), first.share(None)
    for number in (1, 2):
        last.share(np.array([number], np.float32))
    assert np.asarray(wanted).tolist() == [2]
    assert isinstance(unread, Pending)


def answers(session):
    """The tokens of requests that arrive while others are answered, and share a prefix."""
    prompt = tuple(PROMPTS[0]) * 20
    asked = [
        Request(prompt=prompt, max_new_tokens=12),
        Request(prompt=(*prompt, 8), max_new_tokens=9, sampling=Sampling(temperature=1, seed=4)),
        Request(prompt=prompt, max_new_tokens=5, prompt_logprobs=1, logprobs=1),
    ]
    found, running = {}, set()
    while asked or running:
        if asked:
            running.add(session.submit(asked.pop(0)))
        for event in session.step():
            assert event.finish != "error", event.error
            found.setdefault(event.handle, []).append((event.tokens, event.scores, event.prompt))
            running -= {event.handle} if event.finish else set()
    return {handle: merge(events) for handle, events in found.items()}


def merge(events):
    """All tokens, scores and scores of the prompt, however they came."""
    return [sum((event[i] for event in events), ()) for i in range(3)]


def test_a_session_leads_other_processes(make_llama, tmp_path_factory, kernels, pair):
    model, made = make_llama(max_position_embeddings=512), tmp_path_factory.mktemp("made")
    checkpoint = quantized(model, "W8A8", made)
    expected = answers(Batching(Engine(checkpoint, native=True), 2, 300, 2**24))
    first, last = engines(checkpoint, pair)

    def lead():
        others = Followers(pair[0])
        session = open_session(first, slots=2, context=300, memory=2**24, others=others)
        found = answers(session)
        session._fail_all(ValueError())
        again = answers(session)
        others.end()
        return found, list(again.values())

    (found, again), _ = run_all([lead, lambda: follow(last, pair[1])])
    assert found == expected
    assert again == list(expected.values())


def test_without_a_leader_every_process_decides_by_itself(tiny_llama, pair):
    engine = Engine(open_checkpoint(tiny_llama), placement=staged(pair[0]))
    assert isinstance(open_session(engine), FastOneByOne)


def test_others_need_the_kernels(tiny_llama, pair):
    engine = Engine(open_checkpoint(tiny_llama), placement=staged(pair[0]))
    with pytest.raises(PlanishError, match="cannot answer several requests at once"):
        open_session(engine, others=Followers(pair[0]))
