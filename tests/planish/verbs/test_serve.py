"""planish serve as a user starts it: what it prints, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import httpx2
import openai
import pytest

from tests.planish.server.started import started

REFERENCE = ("--engine", "reference", "--port", "0")  # it starts without jax


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Path:
    return make_llama(name="tiny", max_position_embeddings=4096)


def test_it_prints_what_it_chose_and_signals_end_it(model):
    (model / "generation_config.json").write_text('{"do_sample": true, "top_k": 7}')
    with started("--model", model, *REFERENCE) as server:
        server.read_until("sampling")
        assert "tiny at http://127.0.0.1:" in server.lines[0]
        assert "1 slot of 4096 tokens" in server.lines[1]
        assert "no chat template" in server.lines[1]
        assert "default sampling: temperature 1, top_k 7" in server.lines[2]
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        stream = client.completions.create(
            model="tiny", prompt="ab", stream=True, max_tokens=4000, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        code, seconds = server.end(signal.SIGTERM)
        assert (code, seconds < 10) == (143, True)  # 0.4 s on a quiet machine
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(stream)
        client.close()


def test_ctrl_c_ends_it_with_130(model):
    with started("--model", model, *REFERENCE) as server:
        server.read_until("sampling")
        assert server.end(signal.SIGINT)[0] == 130


def test_the_key_of_the_environment_is_asked_for(model):
    with started("--model", model, *REFERENCE, PLANISH_API_KEY="secret") as server:
        server.read_until("sampling")
        assert httpx2.get(f"{server.url}/v1/models").status_code == 401
        headers = {"authorization": "Bearer secret"}
        (found,) = httpx2.get(f"{server.url}/v1/models", headers=headers).json()["data"]
        assert (found["id"], found["max_model_len"]) == ("tiny", 4096)
        assert server.end(signal.SIGTERM)[0] == 143
        assert "secret" not in "".join([*server.lines, *server.stderr])


def test_the_fast_engine_answers_as_generate_does(tiny_llama, planish, kernels):
    asked = ("--prompt", "ab", "--max_new_tokens", 8, "--ignore_eos", "--json")
    text = planish("generate", "--model", tiny_llama, *asked).only_json()["completions"][0]["text"]
    words = ("--port", 0, "--slots", 1, "--name", "a/b", "--context", 128)
    with started("--model", tiny_llama, *words) as server:
        server.read_until("sampling")
        body = {"prompt": "ab", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
        found = httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60).json()
        assert (found["model"], found["choices"][0]["text"]) == ("a/b", text)
        assert server.end(signal.SIGTERM)[0] == 143


def test_an_address_in_use_is_one_line(planish, tiny_llama):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = planish("serve", "--model", tiny_llama, "--port", port)
    assert result.refused(f"127.0.0.1:{port}", "Address already in use", "--port")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", 70000), "port: bad value; expected 0..65535, found 70000"),
        (("--queue", -1), "queue: bad value"),
        (("--timeout", "nan"), "timeout: bad value"),
        (("--max_body", "x"), "max_body: bad value"),
        (("--host", "no.such.host.invalid"), "host no.such.host.invalid: is no address"),
        (("--api_key_file", "/nowhere/keys"), "/nowhere/keys: No such file"),
        (
            ("--allowed_origins", "chat.example"),
            "allowed_origins: bad value; expected an origin, as",
        ),
        (("--allowed_origins", "https://chat.example/"), "allowed_origins: bad value"),
        (("--allowed_hosts", "http://chat.example"), "allowed_hosts: bad value"),
        (("--slots", 0, "--port", 0), "slots: bad value"),
        (("--context", 10**6, "--port", 0), "context: bad value"),
        (("--chat_template", "/nowhere/template"), "/nowhere/template"),
    ],
)
def test_a_bad_flag_is_one_line(planish, tiny_llama, words, said):
    assert planish("serve", "--model", tiny_llama, "--kernels", "xla", *words).refused(said)


def test_a_template_that_attacks_ends_the_start(planish, tiny_llama, tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text("{{ lipsum.__globals__['os'].popen('id').read() }}")
    result = planish("serve", "--model", tiny_llama, "--chat_template", file, "--port", 0)
    assert result.refused(str(file), "cannot be rendered")


def test_a_missing_package_is_named_with_its_extra(planish, tiny_llama, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = planish("serve", "--model", tiny_llama)
    assert result.refused("serve: needs the package uvicorn", "pip install planish[serve]")


def test_help_needs_no_package(planish, monkeypatch):
    for name in ("uvicorn", "starlette", "pydantic", "prometheus_client"):
        monkeypatch.setitem(sys.modules, name, None)
    result = planish("serve", "--help")
    assert result.code == 0
    flags = set(re.findall(r"--\w+", result.out))
    assert {"--api_key_file", "--slots", "--queue", "--allowed_hosts", "--kv_cache"} <= flags


@pytest.mark.parametrize("key", ["", " "])
def test_a_key_that_is_set_but_empty_is_refused(planish, model, monkeypatch, key):
    monkeypatch.setenv("PLANISH_API_KEY", key)
    assert planish("serve", "--model", model, *REFERENCE).refused("PLANISH_API_KEY: is empty")
