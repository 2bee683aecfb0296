"""Clients that leave, read slowly, come in crowds, or come at a bad time."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import openai
import pytest

from planish.reference.text.requests import Event
from planish.server import answering, runner, service
from planish.server.answering import Writer, join, merge
from planish.server.guards import Errors
from planish.server.settings import Settings
from tests.planish.server.doubles import Counting
from tests.planish.server.serving import Serving, describe

LONG = 80_000  # tokens that nobody waits for


@pytest.fixture
def served(quantized):
    return describe(quantized)


@contextmanager
def counting(served, slots=2, burst=1, **settings):
    """A server whose session counts."""
    session = Counting(slots, 2 * LONG, burst)
    with Serving(lambda: session, served, Settings(**settings)) as serving:
        try:
            yield serving
        finally:
            session.go.set()


def ask(serving, stream=False, tokens=LONG, **more):
    """A connection on which a completion was asked for."""
    body = json.dumps({"prompt": "ab", "max_tokens": tokens, "stream": stream, **more}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection = serving.connect()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def leave(connection, abruptly):
    """Close a connection, by a reset or in order."""
    if abruptly:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_until(connection, word):
    found = b""
    while word not in found:
        piece = connection.recv(65536)
        assert piece, found
        found += piece
    return found


# leaving


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("abruptly", [True, False])
def test_who_leaves_is_computed_no_further(served, stream, abruptly):
    with counting(served) as serving:
        connection = ask(serving, stream, n=2)
        serving.until(lambda: len(serving.session.rows) == 2)
        leave(connection, abruptly)
        serving.until_idle()
        serving.until(lambda: serving.lines)
        assert serving.lines[-1].startswith("POST /v1/completions 499; 2 prompt tokens")


def test_a_slot_is_free_one_step_after_its_client_has_left(served):
    with counting(served, slots=1) as serving:
        session = serving.session
        connection = ask(serving)
        serving.until(lambda: session.rows)
        session.go.clear()
        leave(connection, True)
        serving.until(lambda: not serving.service.exchanges)
        before = session.steps
        session.go.set()
        serving.until_idle()
        assert session.steps - before <= 2  # the step that was held, and the one that drops it


def test_who_leaves_the_queue_is_never_computed(served):
    with counting(served, slots=1) as serving:
        first = ask(serving)
        serving.until(lambda: serving.session.rows)
        second = ask(serving)
        serving.until(lambda: serving.session.waiting)
        leave(second, True)
        serving.until(lambda: not serving.session.waiting)
        assert len(serving.session.rows) == 1
        leave(first, True)
        serving.until_idle()


def test_many_leave_at_many_moments(served):
    with counting(served, slots=4, queue=100) as serving:
        connections = [ask(serving, stream=i % 2 == 0) for i in range(40)]
        for number, connection in enumerate(connections):
            if number % 4 == 0:
                read_until(connection, b"data: ")
            leave(connection, number % 3 != 0)
        serving.until_idle()
        with serving.client() as client:
            found = client.completions.create(model="tiny", prompt="a", max_tokens=3)
        assert found.choices[0].text == "abc"
        assert serving.lines and not any("error" in line for line in serving.lines)


# reading slowly


def test_nobody_waits_for_who_reads_nothing(served):
    with counting(served, burst=500) as serving:
        serving.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = ask(serving, stream=True)
        serving.until(lambda: serving.session.rows)
        with serving.client() as client:
            for _ in range(3):
                found = client.completions.create(model="tiny", prompt="a", max_tokens=5)
                assert found.choices[0].text == "abcde"
        leave(slow, True)
        serving.until_idle()


def test_who_reads_nothing_for_too_long_is_cut_off():
    """A send that waits for its client ends the request, and that ends the connection."""
    cut = []

    async def wait(_):
        await asyncio.Event().wait()

    async def app(_scope, _receive, send):
        await Writer(send=send, seconds=0.01).write(b"a piece")

    scope = {"type": "http", "state": {"abort": lambda: cut.append(True)}}
    asyncio.run(Errors(app)(scope, wait, wait))
    assert (cut, scope["planish.status"]) == ([True], 499)


def test_events_that_pile_up_are_merged():
    first = Event(handle=1, tokens=(1, 2), cached=3, accepted=1)
    then = Event(handle=1, tokens=(3,), finish="stop", end=4, accepted=1, rejected=2)
    joined = join([first, then])
    counts = {"cached": 3, "accepted": 2, "rejected": 2}
    assert joined == Event(handle=1, tokens=(1, 2, 3), finish="stop", end=4, **counts)
    other = Event(handle=2, tokens=(9,))
    assert dict(merge([(0, first), (1, other), (0, then)])) == {0: joined, 1: other}


def test_a_long_pile_is_looked_at_in_parts_and_loses_nothing():
    """The loop's other tasks have their turn in between."""
    mailbox, turns = answering.Mailbox(), []

    async def read():
        found = []
        while len(found) < 1000:
            for _, event in await mailbox.take(1.0):
                found += event.tokens
        return found

    async def other():
        while True:
            turns.append(len(mailbox.events))
            await asyncio.sleep(0)

    async def both():
        for number in range(1000):
            mailbox.deliver(0, Event(handle=1, tokens=(number,)))
        beside = asyncio.ensure_future(other())
        found = await read()
        beside.cancel()
        return found

    assert asyncio.run(both()) == list(range(1000))
    assert len(turns) >= 1000 // answering.MOST_EVENTS


# silence


def test_the_headers_come_at_once_and_comments_while_nothing_is_found(served, monkeypatch):
    monkeypatch.setattr(answering, "SILENCE", 0.02)
    with counting(served) as serving:
        serving.session.go.clear()
        connection = ask(serving, stream=True, tokens=2)
        found = read_until(connection, b": waiting")
        assert b"200 OK" in found and b"text/event-stream" in found
        for _ in range(3):
            assert read_until(connection, b"\n\n")
        serving.session.go.set()
        assert b"[DONE]" in read_until(connection, b"[DONE]")
        connection.close()


# crowds


def test_a_full_queue_is_429_at_once_and_nothing_is_lost(served):
    with counting(served, slots=1, queue=2) as serving, serving.client() as client:
        serving.session.go.clear()
        waiting = [ask(serving, tokens=2) for _ in range(3)]
        serving.until(lambda: serving.service.runner.unfinished == 3)
        with pytest.raises(openai.RateLimitError) as caught:
            client.completions.create(model="tiny", prompt="a")
        assert caught.value.response.headers["retry-after"] == "1"
        assert caught.value.code == "queue_full"
        serving.session.go.set()
        for connection in waiting:
            assert b'"text":"ab"' in read_until(connection, b"total_tokens")
            connection.close()


def test_health_answers_while_a_request_is_being_read(served):
    with counting(served) as serving, serving.http() as http:
        busy = threading.Event()
        serving.service.worker.submit(busy.wait, 20)
        connection = ask(serving, tokens=2)
        assert http.get("/health").elapsed.total_seconds() < 1
        busy.set()
        assert b'"text":"ab"' in read_until(connection, b"total_tokens")
        connection.close()


def test_no_answer_waits_for_who_only_wants_tokens(served):
    with counting(served) as serving, serving.http() as http:
        busy = threading.Event()
        serving.service.converter.submit(busy.wait, 20)
        found = http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert found.json()["choices"][0]["text"] == "ab" and not busy.is_set()
        busy.set()
        assert http.post("/tokenize", json={"prompt": "a"}).json()["count"] == 1


def test_reading_a_request_has_a_time_limit(served, monkeypatch):
    monkeypatch.setattr(service, "READING_SECONDS", 0.05)
    with counting(served) as serving, serving.http() as http:
        busy = threading.Event()
        serving.service.converter.submit(busy.wait, 20)
        found = http.post("/tokenize", json={"prompt": "a"})
        busy.set()
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")


# bad times


def test_while_the_model_is_loaded_health_and_requests_say_so(served):
    loaded = threading.Event()

    def load():
        assert loaded.wait(20)
        return Counting()

    serving, said = Serving(load, served), []
    serving.thread.start()
    assert serving.started.wait(20)
    serving.service.on_ready = lambda *_: said.append(serving.service.health)
    with serving.http() as http:
        found = http.get("/health")
        assert (found.status_code, found.json()) == (503, {"status": "loading"})
        found = http.post("/v1/completions", json={"prompt": "a"})
        assert (found.status_code, found.headers["retry-after"]) == (503, "1")
        assert "loading the model" in found.json()["error"]["message"]
        loaded.set()
        serving.until(lambda: said)
        assert said == ["ok"]  # whoever hears it is answered
        assert http.get("/health").status_code == 200
    serving.__exit__()


def test_a_session_that_makes_no_progress_is_reported(served, monkeypatch):
    monkeypatch.setattr(runner, "STALLED", -1000.0)
    with counting(served) as serving, serving.http() as http:
        serving.session.go.clear()
        connection = ask(serving, tokens=2)
        assert serving.session.entered.wait(20)
        found = http.get("/health")
        assert (found.status_code, found.json()) == (503, {"status": "wedged"})
        serving.session.go.set()
        read_until(connection, b"total_tokens")
        connection.close()
        serving.until(lambda: http.get("/health").status_code == 200)


def test_a_failing_step_ends_a_stream_with_an_error_event(served):
    with counting(served) as serving, serving.client() as client:
        serving.session.faults = [ValueError("a secret")]
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=3, stream=True)
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.message == "internal error"
        serving.session.faults = [ValueError("a secret")]
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(model="tiny", prompt="a", max_tokens=3)
        assert caught.value.response.headers["x-should-retry"] == "false"
        assert "secret" not in caught.value.response.text
        found = client.completions.create(model="tiny", prompt="a", max_tokens=3)
        assert found.choices[0].text == "abc"


def test_three_failing_steps_end_the_server_with_code_1(served):
    with counting(served) as serving, serving.client() as client:
        for _ in range(3):
            serving.session.faults = [ValueError()]
            with pytest.raises(openai.APIError):
                client.completions.create(model="tiny", prompt="a", max_tokens=3)
        serving.thread.join(20)
        assert serving.code == 1


def test_the_end_of_the_server_ends_streams_with_an_error_event(served):
    with counting(served, slots=3) as serving:
        streams = [ask(serving, stream=True) for _ in range(2)]
        whole = ask(serving)
        serving.until(lambda: len(serving.session.rows) == 3)
        serving.stop()
        for stream in streams:
            found = read_to_end(stream)
            last = found.split(b"data: ")[-1]
            assert b"the server is stopping" in last and b"[DONE]" not in found
        assert b" 503 " in read_to_end(whole).split(b"\r\n")[0]


def read_to_end(connection):
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_crowd_gets_the_same_texts_as_each_alone(server):
    """32 clients, prompts of 1 to 300 tokens, all kinds of sampling, streamed and not."""

    def text(number):
        prompt, asked = chr(97 + number % 26) * (1 + (number * 37) % 300), {"max_tokens": 12}
        if number % 3:
            asked |= {"seed": number, "temperature": 0.5 + number / 32}
        else:
            asked |= {"temperature": 0, "presence_penalty": number / 32}
        if number % 2:
            stream = client.completions.create(model="tiny", prompt=prompt, stream=True, **asked)
            return "".join(chunk.choices[0].text for chunk in stream)
        return client.completions.create(model="tiny", prompt=prompt, **asked).choices[0].text

    with server.client() as client:
        alone = list(map(text, range(32)))
        with ThreadPoolExecutor(32) as pool:
            assert list(pool.map(text, range(32))) == alone
    server.until_idle()
