"""One thread steps a session: queue, delivery, cancelling, failures, the end."""

from __future__ import annotations

import pytest

from planish.reference.text.requests import Request
from planish.server.runner import NotReadyError, QueueFullError, Runner
from tests.planish.server.doubles import Counting, Posted


def request(tokens=3, prompt=(1,)):
    return Request(prompt=prompt, max_new_tokens=tokens)


class Running:
    """A runner over a session that counts, and what it delivered to each ticket."""

    def __init__(self, slots=2, queue=4):
        self.session, self.posted, self.found = Counting(slots), Posted(), {}
        self.runner = Runner(lambda: self.session, queue, self.posted)
        self.ready, self.ended = [], []
        self.runner.ready = lambda: self.ready.append(True)
        self.runner.ended = lambda: self.ended.append(True)
        self.runner.start()
        self.posted.run_until(lambda: self.ready)

    def submit(self, name, *requests):
        events = self.found[name] = []
        return self.runner.submit(requests, lambda i, event: events.append((i, event)))

    def finishes(self, name):
        return [event.finish for _, event in self.found[name] if event.finish]

    def wait(self, name, count=1):
        return self.posted.run_until(lambda: len(self.finishes(name)) == count)


@pytest.fixture
def running():
    one = Running()
    yield one
    one.session.go.set()
    assert one.runner.stop(10)


def test_requests_are_answered_in_order_and_each_by_its_index(running):
    running.submit("a", request(3), request(2))
    running.wait("a", 2)
    tokens = {0: [], 1: []}
    for index, event in running.found["a"]:
        tokens[index] += event.tokens
    assert tokens == {0: [64, 65, 66], 1: [64, 65]}
    assert running.runner.unfinished == 0


def test_what_one_step_found_is_delivered_in_one_call(running):
    running.session.go.clear()
    running.submit("a", request(3), request(3))
    running.session.go.set()
    assert running.wait("a", 2) == 3  # steps, of two events each


def test_a_full_queue_refuses_at_once_and_loses_nothing(running):
    running.session.go.clear()
    names = [str(i) for i in range(6)]  # two slots, four wait
    for name in names:
        running.submit(name, request())
    with pytest.raises(QueueFullError):
        running.submit("more", request())
    running.session.go.set()
    for name in names:
        running.wait(name)
        assert running.finishes(name) == ["length"]
    running.submit("after", request())
    running.wait("after")


def test_a_cancelled_request_ends_before_the_next_step(running):
    running.session.go.clear()
    ticket = running.submit("a", request(10**6))
    assert running.session.entered.wait(10)
    ticket.cancel()
    running.session.go.set()
    running.wait("a")
    assert running.finishes("a") == ["cancelled"]
    assert len(running.found["a"]) <= 2  # the step that was being computed, and the end
    assert running.session.is_idle


def test_one_choice_is_cancelled_and_the_others_go_on(running):
    ticket = running.submit("a", request(10**6), request(5))
    ticket.cancel(0)
    running.wait("a", 2)
    ends = {index: event.finish for index, event in running.found["a"] if event.finish}
    assert ends == {0: "cancelled", 1: "length"}


def test_cancelling_what_has_ended_does_nothing(running):
    ticket = running.submit("a", request(1))
    running.wait("a")
    ticket.cancel()
    ticket.cancel(0)
    running.submit("b", request(2))
    running.wait("b")
    assert running.finishes("b") == ["length"]
    assert running.session.cancelled == set()


def test_a_request_that_the_session_refuses_ends_alone(running):
    ticket = running.submit("a", request(), request(prompt=()))
    running.wait("a", 2)
    assert "prompt: is empty" in ticket.refusal
    ends = {index: event.finish for index, event in running.found["a"] if event.finish}
    assert ends == {0: "length", 1: "error"}


def test_a_failing_step_ends_what_runs_and_the_next_request_is_answered(running):
    running.session.faults = [ValueError("a secret prompt")]
    running.submit("a", request())
    running.wait("a")
    (_, event) = running.found["a"][-1]
    assert event.finish == "error"
    assert "ValueError" in event.error and "secret" not in event.error
    running.submit("b", request())
    running.wait("b")
    assert running.finishes("b") == ["length"]


def test_three_failing_steps_in_a_row_end_the_thread():
    running = Running()
    for name in "abc":
        running.session.faults = [ValueError()]
        running.submit(name, request())
        running.wait(name)
    running.posted.run_until(lambda: running.ended)
    assert "3 steps failed in a row" in str(running.runner.problem)
    with pytest.raises(NotReadyError):
        running.submit("d", request())


def test_what_is_abandoned_ends_with_the_reason(running):
    running.session.go.clear()
    for name in "abc":
        running.submit(name, request(10**6))
    running.runner.abandon("the server is stopping")
    running.session.go.set()
    for name in "abc":
        running.wait(name)
        assert running.found[name][-1][1].error == "the server is stopping"
    with pytest.raises(NotReadyError):
        running.submit("d", request())


def test_a_session_that_cannot_be_opened_ends_the_thread():
    posted, ended = Posted(), []
    runner = Runner(lambda: 1 / 0, 1, posted)
    runner.ended = lambda: ended.append(True)
    runner.start()
    posted.run_until(lambda: ended)
    assert isinstance(runner.problem, ZeroDivisionError)
    assert runner.state == "stopped"


def test_a_step_that_takes_far_too_long_is_noticed(running, monkeypatch):
    running.session.go.clear()
    running.submit("a", request())
    assert running.session.entered.wait(10)
    assert not running.runner.is_stalled()
    monkeypatch.setattr("planish.server.runner.STALLED", -1.0)
    assert running.runner.is_stalled()
    running.session.go.set()
    running.wait("a")
    assert not running.runner.is_stalled()
