"""Servers under load: what is counted, what is refused, and the rows."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from planish.compare.bench.peers import PeerError, find_server
from planish.compare.bench.peers.gguf_file import word_vocabulary
from planish.compare.bench.random_model import list_tokens, make_tokenizer
from planish.compare.bench.serving import load
from planish.compare.bench.serving.client import Reply, ServingError, complete
from planish.compare.bench.serving.crowd import draw_letters, gaps_between, interrupt, send_crowd
from planish.compare.bench.serving.servers import MeasuredServer, ask_planish, read_port
from tests.models import make_llama
from tests.planish.server.doubles import Counting
from tests.planish.server.serving import Serving, describe


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """A server that finds a letter for each request in a step."""
    served = describe(make_llama(tmp_path_factory.mktemp("counts"), max_position_embeddings=2048))
    with Serving(lambda: Counting(slots=4, context=2048), served) as serving:
        yield serving


@pytest.fixture
def asked(counting):
    return ask_planish(counting.port, 256)


def test_a_reply_has_its_tokens_and_the_times_of_its_pieces(asked):
    reply = asyncio.run(complete(asked.address, asked.body([1, 2], 20)))
    assert reply.tokens == 20
    assert 1 < len(reply.pieces) <= 20 and list(reply.pieces) == sorted(reply.pieces)
    assert reply.first > 0 and len(reply.gaps) == len(reply.pieces) - 1


def test_an_error_is_the_servers_words(asked):
    with pytest.raises(ServingError, match="400 .*max_tokens"):
        asyncio.run(complete(asked.address, asked.body([1], -1)))


def test_a_stream_that_fails_is_an_error(counting, asked):
    counting.session.faults = [ValueError()]
    with pytest.raises(ServingError, match="internal error"):
        asyncio.run(complete(asked.address, asked.body([1], 3)))


def test_a_crowd_gets_all_that_it_asked_for(asked):
    crowd = send_crowd(asked, clients=3, requests=2, sizes=(4, 10))
    assert [reply.tokens for reply in crowd.replies] == [10] * 6
    assert crowd.rate == pytest.approx(60 / crowd.seconds)


def test_a_long_prompt_comes_while_others_are_answered(asked):
    found = interrupt(asked, clients=2, prompt=50, new=300)
    assert found.gaps and found.first > 0 and found.again > 0


def test_gaps_count_from_the_interruption_to_its_end():
    reply = Reply(asked=0.0, pieces=(1.0, 2.0, 4.0, 5.0, 9.0, 10.0), tokens=6)
    assert gaps_between(reply, 3.0, 6.0) == [2.0, 1.0, 4.0]


@pytest.mark.whole
def test_rows_have_rates_gaps_and_the_ratio(asked, monkeypatch):
    monkeypatch.setattr(load, "PROMPT", 4)
    monkeypatch.setattr(load, "NEW", 8)
    monkeypatch.setattr(load, "LONG_NEW", 300)
    servers = [
        MeasuredServer(name=name, format=form, bits=4, asked=asked, is_planish=name == "planish")
        for name, form in (("planish", "W4A8"), ("other", "Q4_0"))
    ]
    options = load.Options(clients=(1, 2), runs=2)
    found = load.report("tiny", servers, load.measure("tiny", servers, options), ["x"])
    rows = {(row["engine"], row["test"]): row for row in found["rows"]}
    assert {test for _, test in rows} == {"serve x1", "serve x2", "pp900 in 4"}
    row, base = rows["other", "serve x2"], rows["planish", "serve x2"]
    assert row["runs"] == 2 and 0 < row["low"] <= row["median"] <= row["high"]
    assert 0 < row["gap_p50"] <= row["gap_p99"] <= row["gap_high"]
    assert row["ratio"] == pytest.approx(base["median"] / row["median"])
    assert (row["compared_with"], base["ratio"]) == ("W4A8", None)
    long = rows["planish", "pp900 in 4"]
    assert long["median"] >= 1 and long["again"] > 0
    assert found["missing"] == ["x"] and len(found["engines"]) == 2


def test_a_server_that_ends_before_it_is_ready_is_one_line():
    lines = ["m as m at http://127.0.0.1:81; loading\n", "error: no memory\n"]
    with pytest.raises(ServingError, match="planish serve: does not start; found error: no memory"):
        read_port(iter(lines))
    assert read_port(iter([lines[0], "ready after 1 s: 8 slots\n"])) == 81


def test_servers_of_peers():
    assert find_server("llama.cpp").install.endswith("[server]")
    with pytest.raises(PeerError, match=r"has no server; expected some of llama.cpp"):
        find_server("torch")


def test_every_token_of_a_random_model_has_a_text_and_only_bytes_are_encoded():
    tokenizer, tokens = make_tokenizer(1000), list_tokens(1000)
    assert len(set(tokens)) == tokenizer.get_vocab_size() == 1000
    text = draw_letters(np.random.default_rng(0))(40)
    assert len(tokenizer.encode(text).ids) == len(text) == 40
    assert tokenizer.decode([300, 301]) == " aabs aabt"
    keys = word_vocabulary(1000)
    assert keys["tokenizer.ggml.tokens"] == tokens
    assert keys["tokenizer.ggml.eos_token_id"] == 999


def test_a_prompt_that_does_not_fit_is_an_error_and_no_wait(asked):
    with pytest.raises(ServingError, match="is not answered"):
        interrupt(asked, clients=2, prompt=50, new=10_000)


def test_few_positions_make_prompts_and_answers_shorter():
    assert (load.Options().sizes, load.Options().long) == ((64, 64), (900, 200))
    few = load.Options(positions=100)
    assert (few.sizes, few.long) == ((50, 50), (98, 92))
