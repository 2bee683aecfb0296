"""The process that renders templates outlives what a template does to its child."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from planish.reference.errors import ChatError
from planish.reference.text import chat, renderer
from planish.reference.text.chat_template import ChatTemplate
from planish.reference.text.renderer import Renderer

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def request(template: str, seconds: int = 10) -> bytes:
    limits = (seconds, 2**30)
    return json.dumps({"template": template, "variables": {}, "limits": limits}).encode()


@pytest.fixture
def one():
    one = Renderer()
    yield one
    one.close()


def test_one_process_answers_all(one):
    assert one.ask(request("a" * 10**6)) == {"text": "a" * 10**6}
    first = one.process.pid
    assert one.ask(request(ENDLESS, seconds=1)) == {"killed": signal.SIGXCPU}
    assert one.ask(request("{{ 1 +")).keys() == {"problem"}
    assert one.ask(request("b")) == {"text": "b"}
    assert one.process.pid == first


def test_one_that_was_killed_is_replaced(one):
    one.ask(request("a"))
    os.kill(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert one.ask(request("b")) == {"text": "b"}


def test_one_that_takes_too_long_is_ended_with_its_child(one, monkeypatch):
    monkeypatch.setattr(renderer, "LONGEST_WAIT", 0.2)
    with pytest.raises(TimeoutError, match="more than 0.2 s"):
        one.ask(request(ENDLESS))
    monkeypatch.undo()
    assert one.process is None
    assert one.ask(request("b")) == {"text": "b"}


def test_an_answer_is_not_taken_for_the_next_one_after_ctrl_c(one, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(renderer, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one.ask(request("a"))
    monkeypatch.undo()
    assert one.ask(request("b")) == {"text": "b"}


def test_a_fork_starts_its_own(one):
    one.ask(request("a"))
    one.owner -= 1  # as it is in a fork
    first = one.process
    assert one.ask(request("b")) == {"text": "b"}
    assert one.process is not first
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
    ("executable", "problem"),
    [("/no/such/python", "no process can be started"), ("/bin/false", "that renders it ended")],
)
def test_one_that_cannot_start_is_one_line(one, monkeypatch, executable, problem):
    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(chat, "RENDERER", one)
    template = ChatTemplate(sources={"default": "a"}, special_tokens={}, path=Path("m"))
    conversation = chat.Conversation(messages=[{"role": "user", "content": "x"}])
    with pytest.raises(ChatError, match=f"^m: chat_template: cannot be rendered: .*{problem}"):
        chat.render_chat(template, conversation)
