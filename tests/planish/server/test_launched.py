"""planish launch -- serve: one process's bytes, and one end for all processes."""

from __future__ import annotations

import os
import signal

import httpx2
import openai
import pytest

from planish.fast.native.build import find_compiler
from planish.reference.errors import KernelsError
from tests.planish.server.started import started
from tests.planish.verbs.test_launch import children, is_running

LAUNCH = ("launch", "--processes", "2", "--")
FLAGS = ("--port", "0", "--slots", "2", "--context", "96")
ASKED = (
    {"prompt": "Ab", "max_tokens": 20, "temperature": 0},
    {"prompt": "Ab c", "max_tokens": 15, "temperature": 1, "seed": 3, "logprobs": 2},
)

pytestmark = pytest.mark.whole


@pytest.fixture(autouse=True)
def compiler():
    """Only the kernels' bits do not depend on the batch."""
    try:
        find_compiler()
    except KernelsError as problem:
        pytest.skip(str(problem))


def answers(server):
    """What a server answers, without what names a request."""
    found = []
    for body in ASKED:
        answer = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=120)
        found.append(answer.json()["choices"])
    return found


@pytest.mark.parametrize("cut", ["tensor=2", "pipeline=2"])
def test_several_processes_serve_what_one_serves(tiny_llama, cut):
    with started("--model", tiny_llama, *FLAGS) as server:
        server.read_until("sampling")
        expected = answers(server)
    with started("--model", tiny_llama, *FLAGS, "--parallel", cut, launch=LAUNCH) as server:
        server.read_until("sampling")
        assert answers(server) == expected
        pids = children(server.process)
        assert len(pids) == 2
        assert server.end(signal.SIGTERM)[0] == 143
        assert not any(map(is_running, pids))
        assert list(server.stderr)[-1] == "SIGTERM: ending\n"


@pytest.mark.parametrize("cut", ["tensor=2", "pipeline=2"])
def test_a_follower_that_dies_ends_all_with_one_line(tiny_llama, cut):
    with started("--model", tiny_llama, *FLAGS, "--parallel", cut, launch=LAUNCH) as server:
        server.read_until("sampling")
        pids = children(server.process)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(
            model=tiny_llama.name,
            prompt="ab",
            stream=True,
            max_tokens=90,
            extra_body={"ignore_eos": True},
        )
        next(iter(stream))
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        client.close()
        assert server.process.wait(60) == 128 + signal.SIGKILL
        assert not any(map(is_running, pids))
        assert list(server.stderr)[-1] == "error: process 1 of 2 was ended by SIGKILL\n"
