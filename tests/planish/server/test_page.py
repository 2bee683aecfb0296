"""The page at /: what the browser allows it, and a reader who sends, stops and continues."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.server.page import FILE
from planish.server.settings import Settings
from tests.models import make_llama
from tests.planish.server.browser import CHROMIUM, DRIVER, Browser
from tests.planish.server.doubles import Counting
from tests.planish.server.serving import TEMPLATE, Serving, describe

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium here")
HOSTILE = """<img src=x onerror="document.title='run'"><script>document.title='run'</script>

```html
<b>bold</b>
```
end & "quotes" </code></pre><svg/onload=document.title='run'>"""


class Saying(Counting):
    """Answers every request with a text again and again, and keeps what it was asked."""

    def __init__(self, tokens: list[int]):
        super().__init__(context=100_000)
        self.words, self.asked = tokens, []

    def submit(self, request):
        self.asked.append(request)
        return super().submit(request)

    def _count(self, handle):
        event, row = super()._count(handle), self.rows.get(handle, [])
        place = (len(row) or self.asked[-1].max_new_tokens) - 1
        token = self.words[place % len(self.words)]
        return type(event)(handle=handle, tokens=(token,), finish=event.finish)


class Pages:
    """Opens servers, and a browser at each."""

    def __init__(self, browser: Browser, model: Path, template: Path):
        self.browser, self.model, self.template = browser, model, template

    def serve(self, says="x", chats=True, **settings):
        served = describe(self.model, self.template if chats else None, max_tokens=100_000)
        session = Saying(served.tokenizer.encode(says))
        return Serving(lambda: session, served, Settings(**settings))

    def visit(self, server: Serving) -> Browser:
        self.browser.open(server.url)
        self.browser.until(lambda: not self.browser.run("document.querySelector('#send').disabled"))
        return self.browser

    def send(self, text: str) -> None:
        self.browser.run("document.querySelector('#prompt').focus()")
        self.browser.type(text, "Enter")

    def finish(self) -> str:
        """The answer, once it is complete."""
        self.browser.until(lambda: self.browser.run("running") is None)
        return self.browser.run("turns.at(-1).content")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Iterator[Pages]:
    root = tmp_path_factory.mktemp("page")
    (root / "template.jinja").write_text(TEMPLATE)
    with Browser(root / "profile") as browser:
        yield Pages(browser, make_llama(root), root / "template.jinja")


def prompt_of(server, number=-1):
    return server.served.tokenizer.decode(server.session.asked[number].prompt)


@needs_chromium
def test_an_answer_streams_until_stop_and_the_server_computes_no_further(pages):
    with pages.serve("abc ") as server:
        page = pages.visit(server)
        assert page.text("#model") == "tiny" and "100000 tokens" in page.text("#limits")
        pages.send("Hello")
        page.until(lambda: len(page.text("article.assistant .text")) > 20)
        assert page.text("#send") == "Stop" and server.session.rows
        before = len(page.text("article.assistant .text"))
        page.until(lambda: len(page.text("article.assistant .text")) > before)
        page.click("#send")
        server.until_idle()
        assert pages.finish().startswith("abc abc ")
        page.until(lambda: "stopped" in page.text("article.assistant .note:not(.bad)"))
        assert re.search(
            r"\d+ tokens · [\d.]+ tokens/s", page.text("article.assistant .note:not(.bad)")
        )
        assert page.text("#send") == "Send" and page.problems() == []
        pages.send("Again?")
        page.until(lambda: len(server.session.asked) == 2)
        page.until(lambda: page.run("turns.at(-1).content"))
        page.type("", "Escape")
        server.until_idle()
        assert prompt_of(server).startswith("<|user|>\nHello<|end|>\n<|assistant|>\nabc abc")
        page.click("#new")
        assert page.run("document.querySelectorAll('article').length") == 0


@needs_chromium
def test_what_the_model_says_is_text_and_never_markup(pages):
    with pages.serve(HOSTILE) as server:
        page = pages.visit(server)
        page.run(f"document.querySelector('#max').value = '{len(HOSTILE)}'")
        pages.send("<i>Hi</i>")
        assert pages.finish() == HOSTILE
        found = "document.querySelectorAll('#turns :is(img, script, b, i, svg)').length"
        assert page.run(found) == 0 and page.run("document.title") == "tiny"
        assert page.text("article.assistant pre code") == "<b>bold</b>"
        assert page.text("article.user .text") == "<i>Hi</i>" and page.problems() == []
        page.run("document.querySelector('#turns').innerHTML = arguments[0]", HOSTILE)
        page.until(lambda: any("Content Security Policy" in one for one in page.problems()))
        assert page.run("document.title") == "tiny"  # although the page itself was careless


@needs_chromium
def test_the_settings_reach_the_request(pages):
    with pages.serve() as server:
        page = pages.visit(server)
        page.click("#set")
        for name, value in {
            "system": "Be brief.",
            "temperature": "0.5",
            "seed": str(2**64 - 1),
            "max": "3",
        }.items():
            page.run(f"document.querySelector('#{name}').focus()")
            page.type(value)
        pages.send("Hi")
        assert pages.finish() == "xxx"
        (asked,) = server.session.asked
        assert (asked.sampling.seed, asked.sampling.temperature) == (2**64 - 1, 0.5)
        assert prompt_of(server).startswith("<|system|>\nBe brief.<|end|>\n<|user|>\nHi")
        page.until(lambda: str(2**64 - 1) in page.text("article.assistant .note:not(.bad)"))
        page.run("document.querySelector('#temperature').value = '9'")
        pages.send("Hi")
        pages.finish()
        assert "temperature" in page.text("article.assistant .bad")


@needs_chromium
def test_a_base_model_continues_texts(pages):
    with pages.serve("ab", chats=False) as server:
        page = pages.visit(server)
        assert page.text("#send") == "Continue"
        page.run("document.querySelector('#max').value = '4'")
        pages.send("Once")
        assert pages.finish() == "abab" and prompt_of(server) == "Once"
        page.run("document.querySelectorAll('article.assistant button')[1].click()")
        assert pages.finish() == "abababab" and prompt_of(server) == "Onceabab"


@needs_chromium
def test_a_key_is_asked_for_and_kept_for_the_session_only(pages):
    with pages.serve(keys=(b"secret",)) as server:
        page = pages.browser
        page.open(server.url)
        page.until(lambda: "API key" in page.text("#limits"))
        assert page.run("document.activeElement.id") == "key"
        page.type("secret", "Enter")
        page.until(lambda: page.text("#model") == "tiny")
        page.run("document.querySelector('#max').value = '2'")
        pages.send("Hi")
        assert pages.finish() == "xx"
        assert page.run("[sessionStorage.getItem('key'), localStorage.length]") == ["secret", 0]
        assert page.run("document.cookie") == ""


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Iterator[Serving]:
    model = make_llama(tmp_path_factory.mktemp("plain"))
    with Serving(Counting, describe(model), Settings(keys=(b"secret",))) as server:
        yield server


def test_the_policy_allows_the_page_itself_and_this_server_only(plain):
    with plain.http() as http:
        found = http.get("/")
        assert http.get("/v1/models").status_code == 401
    assert found.status_code == 200 and found.headers["content-type"].startswith("text/html")
    assert found.content == FILE.read_bytes()
    policy = dict(one.split(" ", 1) for one in found.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert re.fullmatch("'sha256-[A-Za-z0-9+/]{43}='", policy["script-src"])
    assert "unsafe" not in str(policy) and policy["frame-ancestors"] == "'none'"
    assert found.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_server_and_makes_no_markup_of_text():
    text = FILE.read_text()
    assert not re.search(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]+", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localSt", text)


@pytest.mark.whole
def test_another_host_is_refused_the_page(tmp_path):
    with (
        Serving(Counting, describe(make_llama(tmp_path))) as server,
        server.http(headers={"host": "evil.example"}) as http,
    ):
        assert http.get("/").status_code == 403
