"""Which session an engine gets, and what every session offers."""

from __future__ import annotations

import numpy as np
import pytest

from planish.fast.native.instruction_sets import BY_NAME
from planish.fast.session import exactness
from planish.fast.session.batching import Batching
from planish.fast.session.engine import Engine
from planish.fast.session.opening import exact_kernels, open_session
from planish.fast.session.paged import default_memory, free_memory
from planish.fast.session.pages import PAGE
from planish.fast.session.slots import cache_bytes
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PlanishError, PromptError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.requests import Request
from planish.reference.text.sampling import Sampling
from tests.models import make_llama

MEMORY = 2**27


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(make_llama(tmp_path_factory.mktemp("opening")))


@pytest.fixture(scope="module", params=["reference", "xla", "native"])
def engine(request, checkpoint):
    if request.param == "reference":
        return ReferenceEngine(checkpoint)
    if request.param == "native":
        request.getfixturevalue("kernels")
    return Engine(checkpoint, native=request.param == "native")


@pytest.fixture
def session(engine):
    return open_session(engine, slots=4, context=100, memory=MEMORY)


def finish(session):
    """Tokens, prompt scores and the last event of every request."""
    found = {}
    while not session.is_idle:
        for event in session.step():
            tokens, scores, _ = found.get(event.handle, ((), (), None))
            found[event.handle] = tokens + event.tokens, scores or event.prompt, event
    return found


@pytest.mark.matrix(3)
def test_every_session_answers_as_the_definition_does(session, checkpoint):
    drawn = Sampling(temperature=1.0, seed=7, top_p=0.9)
    requests = [
        Request(prompt=(3, 4, 5), max_new_tokens=6, prompt_logprobs=1),
        Request(prompt=(9,) * 70, max_new_tokens=5, sampling=drawn),
        Request(prompt=(8, 1), max_new_tokens=0, prompt_logprobs=2),
    ]
    defined = open_session(ReferenceEngine(checkpoint))
    for one in (session, defined):
        assert [one.submit(request) for request in requests] == [1, 2, 3]
    found = finish(session)
    for handle, (tokens, scores, last) in finish(defined).items():
        assert found[handle][0] == tokens
        assert found[handle][2].finish == last.finish
        for score, other in zip(found[handle][1][1:], scores[1:], strict=True):
            assert score.token == other.token
            assert score.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.mark.matrix(3)
def test_every_session_says_what_it_is(session, engine):
    batches = isinstance(session, Batching)
    assert session.slots == (4 if batches else 1)
    assert session.context == 100
    assert session.notes[0].startswith("up to 4 requests" if batches else "one request at a time")
    session.submit(Request(prompt=(1, 2), max_new_tokens=3))
    session.submit(Request(prompt=(1, 2), max_new_tokens=3))
    session.step()
    stats = session.stats()
    assert stats.running + stats.waiting == 2
    assert stats.running == (2 if batches else 1)
    assert stats.pages_used == (2 if batches else 0)
    finish(session)
    assert (session.stats().running, session.stats().waiting) == (0, 0)


@pytest.mark.matrix(3)
def test_cancelled_requests_end_at_once_also_those_that_wait(session):
    handles = [session.submit(Request(prompt=(1,) * 60, max_new_tokens=30)) for _ in range(6)]
    session.step()
    for handle in (handles[0], handles[5]):
        session.cancel(handle)
    session.cancel(999)
    gone = [event for event in session.step() if event.finish == "cancelled"]
    assert [event.handle for event in gone] == [handles[0], handles[5]]
    found = finish(session)
    assert [found[handle][2].finish for handle in handles[1:5]] == ["length"] * 4


def test_a_failure_ends_the_request_that_runs(session, monkeypatch):
    if isinstance(session, Batching):
        pytest.skip("test_batching.py")
    first, second = (session.submit(Request(prompt=(n,), max_new_tokens=2)) for n in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(session, "respond", lambda *_: iter(lambda: 1 / 0, None))
        (event,) = session.step()
    assert (event.handle, event.finish) == (first, "error")
    assert "division by zero" in event.error
    assert finish(session)[second][2].finish == "length"


@pytest.mark.matrix(3)
def test_warming_up_compiles_what_requests_need(engine):
    session, told = open_session(engine, slots=1, context=20, memory=MEMORY), []
    session.warm(told.append)
    known = session.stats().programs
    assert bool(told) == bool(known)
    session.submit(Request(prompt=(1,) * 15, max_new_tokens=5))
    finish(session)
    assert session.stats().programs == known


def test_bad_values_are_refused(engine):
    for options in ({"slots": 0}, {"slots": 1000}, {"context": 0}, {"context": 10**6}):
        with pytest.raises(PlanishError, match="expected 1.."):
            open_session(engine, **options)
    with pytest.raises(PromptError, match="at most 100 positions"):
        open_session(engine, context=100).submit(Request(prompt=(1,) * 99, max_new_tokens=9))


def test_caches_that_kernels_do_not_hold_are_answered_one_by_one(checkpoint, kernels, monkeypatch):
    monkeypatch.setattr("planish.fast.session.opening.can_tile", lambda _: False)
    session = open_session(Engine(checkpoint, native=True), context=64)
    assert "do not hold this model's cache" in session.notes[0]


def test_memory_is_at_most_a_quarter_of_what_is_free(checkpoint, kernels, monkeypatch, tmp_path):
    engine = Engine(checkpoint, native=True)
    one = cache_bytes(engine.config, 1, PAGE, engine.backend)
    assert [default_memory(engine, rows, 128) for rows in (1, 3)] == [2 * one, 4 * one]
    monkeypatch.setattr("planish.fast.session.paged.free_memory", lambda: 8 * one)
    assert default_memory(engine, 3, 128) == 3 * one
    assert [default_memory(engine, 3, context) for context in (256, 512)] == [3 * one, 5 * one]
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    7 kB\n")
    assert free_memory(tmp_path / "meminfo") == 7 * 1024
    assert free_memory(tmp_path / "nothing") > 0


def quantized(tmp_path, name):
    source = make_llama(tmp_path)
    with CheckpointWriter(tmp_path / name, source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, recipe(name), [np.arange(64)])
    return open_checkpoint(tmp_path / name)


def test_weight_only_models_are_served_without_matrix_tiles(tmp_path, monkeypatch, caplog):
    floats, integers = quantized(tmp_path / "a", "W8A16"), quantized(tmp_path / "b", "W8A8")
    sets = tuple(BY_NAME[name] for name in ("amx", "avx512", "avx2", "plain"))
    monkeypatch.setattr(exactness, "available", lambda: sets)
    assert exact_kernels(integers, "auto") == "auto"
    assert not caplog.records
    assert exact_kernels(floats, "auto") == exact_kernels(floats, "native") == "avx512"
    assert "depend on the batch" in caplog.text
    assert [exact_kernels(floats, name) for name in ("amx", "xla")] == ["amx", "xla"]
    monkeypatch.setattr(exactness, "available", lambda: sets[1:])
    assert exact_kernels(floats, "auto") == "auto"


def test_weight_only_models_by_matrix_tiles_are_answered_alone(tmp_path, kernels, monkeypatch):
    engine = Engine(quantized(tmp_path, "W8A16"), native=True)
    for name, slots in (("amx", 1), ("plain", 4)):
        monkeypatch.setattr(exactness, "preferred_set", lambda name=name: name)
        assert open_session(engine, slots=4, memory=MEMORY).slots == slots
