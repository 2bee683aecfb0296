"""Who may call, from where, and with what body; everything else is an error in OpenAI's form."""

from __future__ import annotations

import inspect
import json

import openai
import pytest

from planish.server import guards
from planish.server.guards import is_ours
from planish.server.settings import Settings
from tests.planish.server.doubles import Counting
from tests.planish.server.serving import Serving, describe

KEYS = (b"right-key", "schlüssel".encode())
ASKED = {"prompt": "ab", "max_tokens": 2}
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("GET", "/metrics"),
    ("GET", "/tokenizer_info"),
    ("GET", "/nowhere"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("POST", "/apply-template"),
]


@pytest.fixture(scope="module")
def open_to_all(quantized):
    settings = Settings(max_body=1000, metrics=True, allowed_hosts=("chat.example",))
    with Serving(Counting, describe(quantized), settings) as serving:
        yield serving


@pytest.fixture(scope="module")
def locked(quantized):
    settings = Settings(keys=KEYS, allowed_origins=("https://chat.example",))
    with Serving(Counting, describe(quantized), settings) as serving:
        yield serving


@pytest.fixture(scope="module")
def http(open_to_all):
    with open_to_all.http() as http:
        yield http


@pytest.fixture(scope="module")
def locked_http(locked):
    with locked.http() as http:
        yield http


def post(http, content, **headers):
    given = {"content-type": "application/json", **headers}
    return http.post("/v1/completions", content=content, headers=given)


def said(response):
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


# keys


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_asks_for_a_key(locked_http, method, path):
    found = locked_http.request(method, path)
    assert (found.status_code, found.headers["www-authenticate"]) == (401, "Bearer")
    assert found.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "header", ["right-key", "Bearer", "Bearer right-ke", "Bearer right-keys", "Basic x"]
)
def test_a_wrong_key_is_refused(locked_http, header):
    found = locked_http.get("/v1/models", headers={"authorization": header})
    assert found.status_code == 401
    assert "right-key" not in found.text


@pytest.mark.parametrize(
    "header", [b"Bearer right-key", b"bearer right-key", "Bearer schlüssel".encode()]
)
def test_a_right_key_is_accepted(locked_http, header):
    headers = [(b"authorization", header)]
    assert locked_http.get("/v1/models", headers=headers).status_code == 200


def test_health_asks_for_no_key(locked_http):
    assert locked_http.get("/health").json() == {"status": "ok"}


def test_keys_are_compared_in_constant_time():
    assert "hmac.compare_digest" in inspect.getsource(guards.find_key)


def test_openais_client_sends_its_key(locked):
    with locked.client("right-key") as client:
        assert client.models.retrieve("tiny").id == "tiny"
    with locked.client("wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_two_keys_never_share_a_prefix(locked, locked_http):
    for key in ("right-key", "schlüssel", "right-key"):
        headers = [(b"authorization", b"Bearer " + key.encode())]
        assert locked_http.post("/v1/completions", json=ASKED, headers=headers).status_code == 200
    first, second, third = locked.session.salts[-3:]
    assert first == third != second


def test_no_key_is_in_the_log(locked, locked_http):
    locked_http.get("/v1/models", headers={"authorization": "Bearer right-key"})
    locked_http.get("/v1/models", headers={"authorization": "Bearer guess-key"})
    assert not any("-key" in line for line in locked.lines)
    assert "right-key" not in repr(locked.settings)


def test_an_empty_key_is_accepted_where_none_is_asked_for(open_to_all):
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    assert b" 200 " in open_to_all.raw(head + b"Authorization: Bearer \r\n\r\n")


# hosts and origins


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1:8080", True),
        ("10.1.2.3", True),
        ("[::1]", True),
        ("[::1]:8080", True),
        ("chat.example", True),
        ("evil.example", False),
        ("localhost.evil.example:80", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_names_that_are_ours(host, ours):
    assert is_ours(host, frozenset({"chat.example"})) is ours


def test_the_host_of_another_site_is_refused(http):
    found = http.get("/v1/models", headers={"host": "evil.example"})
    assert (found.status_code, found.json()["error"]["code"]) == (403, "host_not_allowed")
    assert http.get("/v1/models", headers={"host": "chat.example"}).status_code == 200


def test_with_a_key_the_host_does_not_matter(locked_http):
    headers = {"host": "any.example", "authorization": "Bearer right-key"}
    assert locked_http.get("/v1/models", headers=headers).status_code == 200


def test_without_permission_no_page_may_read(http):
    for method in ("GET", "OPTIONS"):
        headers = {"origin": "https://a.example", "access-control-request-method": "GET"}
        found = http.request(method, "/v1/models", headers=headers)
        assert not [name for name in found.headers if name.startswith("access-control")]


def test_a_page_with_permission_may_call(locked_http):
    origin = {"origin": "https://chat.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    found = locked_http.options("/v1/chat/completions", headers={**origin, **asks})
    assert found.status_code == 204
    assert found.headers["access-control-allow-origin"] == "https://chat.example"
    assert found.headers["access-control-allow-headers"] == "x-a"
    found = locked_http.get("/v1/models", headers=origin)
    assert (found.status_code, found.headers["vary"]) == (401, "Origin")
    assert found.headers["access-control-allow-origin"] == "https://chat.example"
    assert "access-control-allow-credentials" not in found.headers
    found = locked_http.get("/v1/models", headers={"origin": "https://other.example"})
    assert "access-control-allow-origin" not in found.headers


# bodies


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_that_a_foreign_page_can_send_is_refused(http, kind):
    found = post(http, json.dumps(ASKED), **{"content-type": kind})
    assert found.status_code == 415
    assert "application/json" in said(found)


def test_a_charset_is_no_other_type(http):
    kind = {"content-type": "application/json; charset=utf-8"}
    assert post(http, json.dumps(ASKED), **kind).status_code == 200


def test_a_packed_body_is_refused(http):
    assert post(http, b"\x1f\x8b" + bytes(100), **{"content-encoding": "gzip"}).status_code == 415


def test_a_large_body_is_refused_before_it_is_parsed(http):
    found = post(http, b"[" * 9_000_000)
    assert found.status_code == 413
    assert said(found) == "the body has more than 1000 bytes; see --max_body"


def test_a_large_body_in_chunks_is_refused(http):
    assert post(http, (b"[" * 400 for _ in range(9))).status_code == 413


def test_a_body_in_chunks_is_read(http):
    pieces = json.dumps(ASKED).encode()
    assert post(http, (pieces[i : i + 7] for i in range(0, len(pieces), 7))).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"prompt": NaN}',
        b'{"prompt": "\\ud800", "max_tokens": 1}',
        b'{"prompt": "a", "prompt": "b"}',
        b"[" * 450 + b"]" * 450,
        b"\xff\xfe",
        b'{"prompt": "a\\u0000b", "max_tokens": "1"}',
    ],
)
def test_a_bad_body_is_the_clients_fault(http, body):
    found = post(http, body)
    assert found.status_code == 400
    assert said(found)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xff\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000,
    ],
)
def test_what_is_no_http_is_refused(open_to_all, http, sent):
    status = open_to_all.raw(sent).split(b" ")[1]
    assert status.startswith(b"4")
    assert http.get("/health").status_code == 200


def test_a_path_with_nul_is_not_found(open_to_all):
    head = b"GET /v1/models%00 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    assert b" 404 " in open_to_all.raw(head)


def test_an_unforeseen_error_is_an_answer_without_its_words(open_to_all, http, monkeypatch):
    def fail(*_):
        raise ValueError("a secret")

    monkeypatch.setattr(type(open_to_all.service.served), "model_object", fail)
    found = http.get("/v1/models")
    assert (found.status_code, said(found)) == (500, "internal error")
    assert found.headers["x-should-retry"] == "false"


def test_metrics_are_served_only_where_they_are_asked_for(locked_http, http):
    found = locked_http.get("/metrics", headers={"authorization": "Bearer right-key"})
    assert found.status_code == 404 and "--metrics" in said(found)
    assert http.get("/metrics").status_code == 200
