"""A request's answer has the same bits alone, among others, and after a prefix was found."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.fast.native.instruction_sets import BY_NAME
from planish.fast.session.batching import Batching
from planish.fast.session.engine import Engine
from planish.fast.session.pages import PAGE
from planish.fast.session.slots import cache_bytes
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PlanishError, PromptError
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.generate import Stop
from planish.reference.text.requests import Request, answer
from planish.reference.text.sampling import Sampling
from tests.fast.session.clock import Clock
from tests.faults import spoil_logits
from tests.models import make_llama

GOLDEN = Path(__file__).parents[2] / "golden"
GOLDENS = sorted(path.parent.name for path in GOLDEN.glob("*/golden.npz"))
MEMORY = 2**28


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    root = tmp_path_factory.mktemp("batching")
    source = make_llama(root, max_position_embeddings=640)
    with CheckpointWriter(root / "quantized", source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, recipe("W4A8", group_size=32))
    return open_checkpoint(root / "quantized")


@pytest.fixture(scope="module")
def engine(checkpoint, kernels):
    return Engine(checkpoint, native=True)


def session(engine, slots=4, context=640):
    return Batching(engine, slots, context, MEMORY)


def collect(session, events):
    """Add the events to what each request was answered: tokens, scores, prompt, finish."""
    for event in session.step():
        found = events.setdefault(event.handle, {"tokens": [], "scores": [], "prompt": ()})
        found["tokens"] += event.tokens
        found["scores"] += event.scores
        found["prompt"] = event.prompt or found["prompt"]
        found |= {"finish": event.finish, "end": event.end, "error": event.error}
        found["cached"] = max(event.cached, found.get("cached", 0))


def answers(session, requests):
    events = {}
    handles = [session.submit(request) for request in requests]
    while not session.is_idle:
        collect(session, events)
    return [events[handle] for handle in handles]


def each_alone(engine, requests, context=640):
    """What each request is answered in a session that has no other."""
    return [answers(session(engine, 1, context), [request])[0] for request in requests]


def bits(found):
    return [{k: v for k, v in one.items() if k != "cached"} for one in found]


def mixed_requests(count, vocabulary, longest, seed=0):
    """Prompts of all lengths, some with a common beginning; all kinds of sampling and scores."""
    rng = random.Random(seed)
    common, requests = [rng.randrange(vocabulary) for _ in range(longest)], []
    for number in range(count):
        length = rng.choice([1, 9, longest // 2, longest - 8])
        start = rng.randrange(length) if number % 2 else 0
        own = [rng.randrange(vocabulary) for _ in range(length - start)]
        drawn = Sampling(temperature=1.0, top_p=0.9, seed=number, min_p=0.01 * (number % 3))
        request = Request(
            prompt=(*common[:start], *own),
            max_new_tokens=rng.choice([1, 4, 8]),
            sampling=drawn if number % 3 else Sampling(repetition_penalty=1 + 0.2 * (number % 2)),
            choice=number % 4,
            logprobs=2 if number % 5 == 0 else None,
            prompt_logprobs=1 if number % 7 == 0 else None,
        )
        requests.append(request)
    return requests


@pytest.mark.optimized
@pytest.mark.again
def test_an_answer_has_the_same_bits_alone_among_others_and_again(engine):
    requests = mixed_requests(24, 256, 300)
    alone = each_alone(engine, requests)
    shared = session(engine)
    assert bits(answers(shared, requests)) == bits(alone)
    again = answers(shared, requests)
    assert bits(again) == bits(alone)
    assert sum(one["cached"] for one in again) > 1000


@pytest.fixture
def computed(monkeypatch):
    """computed(session) -> a list that grows by the number of tokens of each step."""

    def watch(session):
        counts, step = [], session.model.step

        def count(plan, *more):
            counts.append(len(plan.tokens))
            return step(plan, *more)

        monkeypatch.setattr(session.model, "step", count)
        return counts

    return watch


@pytest.mark.parametrize("scored", [None, 1])
def test_choices_compute_their_prompt_once(engine, computed, scored):
    """Of the second to the fourth one token each; 400 tokens are three pages and some."""
    prompt = tuple(n * 37 % 256 for n in range(400))
    drawn = Sampling(temperature=1.0, seed=5)
    base = Request(prompt=prompt, max_new_tokens=1, sampling=drawn, prompt_logprobs=scored)
    requests = [replace(base, choice=number) for number in range(4)]
    alone = each_alone(engine, requests)
    shared = session(engine)
    counts = computed(shared)
    found = answers(shared, requests)
    assert bits(found) == bits(alone)
    assert [one["cached"] for one in found] == [0, 399, 399, 399]
    assert sum(counts) == 400 + 3
    assert shared.pages.available == shared.pages.count


def test_a_prompt_waits_for_what_another_reads_of_it_and_no_longer(engine, computed):
    shared, events = session(engine), {}
    counts = computed(shared)
    system = tuple(n * 37 % 256 for n in range(300))
    longer = Request(prompt=(*system, *range(250)), max_new_tokens=9)
    handles = [shared.submit(one) for one in (longer, replace(longer, prompt=(*system, 9, 9)))]
    other = shared.submit(Request(prompt=system, max_new_tokens=1, salt=b"another"))
    collect(shared, events)
    assert counts == [512] and shared.stats().waiting == 2
    collect(shared, events)
    assert shared.stats().waiting == 0 and shared.rows[0].is_reading is False
    while not shared.is_idle:
        collect(shared, events)
    assert [events[one]["cached"] for one in (*handles, other)] == [0, 300, 0]


def test_who_waits_for_a_prompt_that_is_cancelled_reads_the_rest(engine):
    shared, events = session(engine), {}
    request = Request(prompt=tuple(n * 37 % 256 for n in range(600)), max_new_tokens=2)
    first, second = shared.submit(request), shared.submit(replace(request, choice=1))
    collect(shared, events)
    shared.cancel(first)
    while not shared.is_idle:
        collect(shared, events)
    assert (events[first]["finish"], events[second]["finish"]) == ("cancelled", "length")
    assert events[second]["cached"] == 512
    assert bits([events[second]]) == bits(answers(session(engine, 1), [request]))


def test_scores_of_a_shared_context_are_computed_once(engine, computed):
    """As lm_eval asks for those of the choices of one question."""
    context = tuple(n * 37 % 256 for n in range(260))
    endings = [(1, 2), (3,), (1, 2, 3, 4), (5, 6)]
    base = Request(prompt=(1,), max_new_tokens=1, logprobs=1, prompt_logprobs=1)
    requests = [replace(base, prompt=(*context, *ending)) for ending in endings]
    alone = each_alone(engine, requests)
    shared = session(engine)
    counts = computed(shared)
    found = answers(shared, requests)
    assert bits(found) == bits(alone)
    assert [one["cached"] for one in found] == [0, 259, 261, 259]
    assert sum(counts) == 262 + 2 + 3 + 3
    listing = replace(requests[0], prompt_logprobs=6)  # more than is kept
    assert [one["cached"] for one in answers(shared, [listing, listing])] == [0, 0]


class Alternating:
    """A constraint: six tokens, even and odd ones in turn."""

    def __init__(self):
        self.seen = []

    @property
    def is_complete(self):
        return len(self.seen) == 6

    def allowed(self):
        return np.arange(300) % 2 == len(self.seen) % 2

    def accept(self, token):
        self.seen.append(token)


def test_constrained_answers_have_the_same_bits_alone_among_others_and_with_guesses(engine):
    free = mixed_requests(4, 256, 60)
    held = [
        replace(one, constraint=Alternating, max_new_tokens=9) for one in mixed_requests(4, 256, 60)
    ]
    requests = [one for pair in zip(free, held, strict=True) for one in pair]
    alone = each_alone(engine, requests)
    assert bits(answers(session(engine), requests)) == bits(alone)
    guessing = Batching(engine, 2, 640, MEMORY, lookup=7)
    repeated = replace(held[0], prompt=(7, 8, 9, 10, 11, 12, 13) * 4)
    assert bits(answers(guessing, [repeated])) == bits(answers(session(engine, 1), [repeated]))
    for one in alone[1::2]:
        assert [token % 2 for token in one["tokens"]] == [0, 1] * 3 and one["finish"] == "stop"


def test_no_end_comes_before_the_least_tokens_in_any_batch(engine):
    free = answers(session(engine, 1), [Request(prompt=(3, 4), max_new_tokens=2)])[0]["tokens"]
    request = Request(prompt=(3, 4), max_new_tokens=20, ends=(*free,), min_new_tokens=5)
    drawn = Sampling(temperature=1.0, seed=1, logit_bias=((free[0], 100.0),))
    requests = [request, replace(request, sampling=drawn), *mixed_requests(3, 256, 60)]
    alone = each_alone(engine, requests)
    assert bits(answers(session(engine), requests)) == bits(alone)
    guessing = Batching(engine, 2, 640, MEMORY, lookup=7)
    assert bits(answers(guessing, requests[:2])) == bits(alone[:2])
    assert not set(alone[0]["tokens"][:5]) & set(free)
    assert (len(alone[1]["tokens"]), alone[1]["end"]) == (5, free[0])


@pytest.mark.optimized(11)
@pytest.mark.again
@pytest.mark.matrix(76, 15)
@pytest.mark.parametrize("name", GOLDENS)
def test_every_architecture_answers_with_the_same_bits_in_a_batch(name, kernels):
    engine = Engine(open_checkpoint(GOLDEN / name), native=True)
    longest = min(engine.config.max_positions, 2 * PAGE)
    requests = mixed_requests(6, engine.config.vocab_size, longest - 8)
    alone = each_alone(engine, requests, longest)
    for seconds in (1e-4, 1.0):  # of a step: whatever the machine does, both sizes of chunks occur
        together = Batching(engine, 4, longest, MEMORY, clock=Clock(seconds))
        assert bits(answers(together, requests)) == bits(alone)


@pytest.mark.whole(3)
@pytest.mark.parametrize("options", [{}, {"attention": "int8", "kv_cache": "int8"}])
@pytest.mark.parametrize("name", ["W8A8", "W4A16", "O2", "O3"])
def test_recipes_answer_with_the_same_bits_in_a_batch(name, options, kernels, tmp_path):
    source = make_llama(tmp_path, max_position_embeddings=400)
    chosen = recipe(name, group_size=32 if name == "W4A16" else None)
    with CheckpointWriter(tmp_path / "quantized", source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, chosen, [np.arange(64)])
    opened = open_checkpoint(tmp_path / "quantized")
    engine = Engine(replace(opened, config=replace(opened.config, **options)), native=True)
    requests = mixed_requests(8, 256, 300)
    alone = each_alone(engine, requests)
    assert bits(answers(session(engine), requests)) == bits(alone)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("golden", "name"),
    [("qwen3_moe-normalized", "W8A8"), ("mixtral-two-of-four", "W8A16")],
)
def test_quantized_experts_answer_with_the_same_bits_in_a_batch(golden, name, kernels, tmp_path):
    source = GOLDEN / golden
    with CheckpointWriter(tmp_path / "quantized", source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, recipe(name), [np.arange(64)])
    engine = Engine(open_checkpoint(tmp_path / "quantized"), native=True)
    assert session(engine, context=100).slots == (4 if name == "W8A8" else only_lanes(kernels))
    requests = mixed_requests(4, engine.config.vocab_size, 90)
    alone = [answers(session(engine, 1, 100), [request])[0] for request in requests]
    assert bits(answers(session(engine, context=100), requests)) == bits(alone)


def only_lanes(kernels):
    """Slots of a weight-only model: one by matrix tiles."""
    return 1 if BY_NAME[kernels[0]].matmul == "amx" else 4


def test_models_that_must_be_answered_alone_say_why(kernels, tmp_path):
    engine = Engine(open_checkpoint(GOLDEN / "mixtral-two-of-four"), native=True)
    shared = session(engine, context=100)
    assert (shared.slots, shared.notes[0].partition(", ")[0]) == (1, "one request at a time")


def test_greedy_tokens_are_those_of_generate(engine):
    prompts = [[5, 6, 7], list(range(200)), [9]]
    rows = [[], [], []]
    for row, token in engine.generate(prompts, Stop(6, ignore_eos=True), Sampling()):
        rows[row].append(token)
    found = answers(session(engine), [Request(prompt=(*p,), max_new_tokens=6) for p in prompts])
    assert [one["tokens"] for one in found] == rows


def test_tokens_scores_and_ends_are_those_of_the_definition(checkpoint, engine):
    reference = ReferenceEngine(checkpoint)
    request = Request(prompt=(3, 4, 5), max_new_tokens=5, logprobs=2, prompt_logprobs=2)
    (found,) = answers(session(engine), [request])
    events = list(answer(reference.config, reference.weights, request))
    assert found["tokens"] == [token for event in events for token in event.tokens]
    expected = [score for event in events for score in event.scores]
    for score, other in zip(found["scores"], expected, strict=True):
        assert score.logprob == pytest.approx(other.logprob, abs=1e-3)
    assert found["prompt"][0] is None
    for score, other in zip(found["prompt"][1:], events[0].prompt[1:], strict=True):
        assert score.token == other.token
        assert score.logprob == pytest.approx(other.logprob, abs=1e-3)
    end = found["tokens"][2]
    (ended,) = answers(session(engine), [replace(request, ends=(end,), logprobs=None)])
    assert (ended["finish"], ended["end"]) == ("stop", end)
    assert ended["tokens"] == found["tokens"][: found["tokens"].index(end)]


def test_a_cancelled_request_leaves_at_once_and_others_go_on(engine):
    shared = session(engine, 2)
    handles = [shared.submit(Request(prompt=(n,) * 200, max_new_tokens=50)) for n in range(4)]
    shared.step()
    for handle in (handles[0], handles[3]):
        shared.cancel(handle)
    events = {}
    while not shared.is_idle:
        collect(shared, events)
    ends = [events[handle]["finish"] for handle in handles]
    assert ends == ["cancelled", "length", "length", "cancelled"]
    assert shared.pages.available == shared.pages.count


@pytest.mark.matrix(2)
@pytest.mark.parametrize("after", [0, 3])  # steps: a prompt's chunk, or tokens of the answer
@pytest.mark.parametrize("scored", [None, 0])
def test_logits_that_are_no_numbers_fail_one_request(engine, monkeypatch, after, scored):
    shared, events = session(engine, 2), {}
    good, bad = (
        shared.submit(
            Request(prompt=(n, n), max_new_tokens=20, logprobs=scored, prompt_logprobs=scored)
        )
        for n in (1, 2)
    )
    for _ in range(after):
        collect(shared, events)
    spoil_logits(shared, monkeypatch, lambda request: request.prompt[0] == 2)
    while not shared.is_idle:
        collect(shared, events)
    assert events[good]["finish"] == "length"
    assert len(events[good]["tokens"]) == 20
    assert events[bad]["finish"] == "error"
    assert "nan" in events[bad]["error"].lower()
    assert shared.pages.available == shared.pages.count


def test_a_step_that_fails_ends_the_running_requests_and_no_others(engine, monkeypatch):
    shared = session(engine, 1)
    first, second = (shared.submit(Request(prompt=(n,), max_new_tokens=3)) for n in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(shared.model, "step", lambda *_: 1 / 0)
        (event,) = shared.step()
    assert (event.handle, event.finish) == (first, "error")
    events = {}
    while not shared.is_idle:
        collect(shared, events)
    assert events[second]["finish"] == "length"


def test_requests_that_can_never_fit_are_refused(engine):
    with pytest.raises(PromptError, match="at most 200 positions"):
        session(engine, 2, 200).submit(Request(prompt=(1,) * 250, max_new_tokens=9))
    with pytest.raises(PlanishError, match="at least"):
        Batching(engine, 2, 640, 1000)
    with pytest.raises(PlanishError, match="native kernels"):
        Batching(Engine(open_checkpoint(GOLDEN / GOLDENS[0])), 2, 128, MEMORY)


def test_a_known_prefix_keeps_no_request_waiting_that_needs_every_page(engine):
    """The page of its end cannot be copied then: it is computed again."""
    one = Batching(engine, 1, 128, page_bytes(engine))
    first = one.submit(Request(prompt=(5, 6, 7), max_new_tokens=2))
    events = [*one.step(), *one.step()]
    again = one.submit(Request(prompt=(5, 6, 7), max_new_tokens=2))
    events += [event for _ in range(4) for event in one.step()]
    tokens = {handle: [] for handle in (first, again)}
    for event in events:
        tokens[event.handle] += event.tokens
    assert one.is_idle and tokens[first] == tokens[again] and len(tokens[again]) == 2


def page_bytes(engine):
    return cache_bytes(engine.config, 1, PAGE, engine.backend)


def test_no_program_is_compiled_after_warming_up(engine):
    shared = session(engine, 3)
    shared.warm()
    known = len(engine.programs.known())
    answers(shared, mixed_requests(12, 256, 300, seed=5))
    assert len(engine.programs.known()) == known
