"""What lm-evaluation-harness sends to a server, and what it reads; test_lm_eval_program.py runs it.

Its local-completions models (0.4.13: models/openai_completions.py, models/api_models.py, utils.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from planish.compare.quality import tasks
from planish.fast.session.engine import Engine
from planish.reference.text.evaluate import rolling, rolling_windows
from tests.planish.server.serving import Serving

POCKET = Path(__file__).parents[3] / "pocket"
LENGTH = 26  # of a window, as model_args max_length
UNTIL = [".", "\n\n", "e", "#", ";"]  # five of them: more than OpenAI's API takes

ITEMS = [
    ("A quick", (" fox", " jumps", " é😀"), 1),
    ("Spaces  ", ("after", "b"), 0),
    ("ünïcö", (" a", " ö", " ..."), 2),
]


@dataclass(frozen=True)
class Client:
    """What lm_eval's API model does, over one connection.

    The key is empty, as it is where OPENAI_API_KEY is not set: "Bearer ", read without the space.
    """

    http: httpx2.Client

    def post(self, path: str, **body: Any) -> Any:
        found = self.http.post(path, json=body, headers={"Authorization": "Bearer"})
        assert found.status_code == 200, found.text
        return found.json()

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self.post("/tokenize", prompt=text, add_special_tokens=False)["tokens"]
        return tokens

    def info(self, name: str) -> str | None:
        text: str | None = self.http.get("/tokenizer_info").json()[name]
        return text

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, with spaces at the end of a context before the continuation."""
        cut = context.rstrip()
        whole = self.encode(context + continuation)
        first = len(self.encode(cut))
        return whole[:first], whole[first:]

    def score(self, pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """log p of each continuation, and whether it is greedy, in one request."""
        answer = self.post(
            "/v1/completions",
            model="tiny",
            prompt=[[*context, *continuation] for context, continuation in pairs],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [read(one, len(pair[0])) for one, pair in zip(choices, pairs, strict=True)]

    def generate(self, prompts: list[list[int]], **more: Any) -> list[str]:
        given = {"max_tokens": 24, "temperature": 0, "stop": UNTIL, "seed": 1234, **more}
        answer = self.post("/v1/completions", model="tiny", prompt=prompts, **given)
        return [choice["text"] for choice in answer["choices"]]


def read(choice: dict[str, Any], first: int) -> tuple[float, bool]:
    """The sum and the flag of the tokens from `first` to the last but one, by float equality."""
    scores = choice["logprobs"]
    found, tops = scores["token_logprobs"][first:-1], scores["top_logprobs"][first:-1]
    return sum(found), all(x == max(top.values()) for x, top in zip(found, tops, strict=True))


@pytest.fixture(scope="module")
def client(server: Serving) -> Iterator[Client]:
    with server.http() as http:
        yield Client(http)


@pytest.fixture(scope="module")
def judged(server: Serving, engine: Engine) -> list[tasks.Judged]:
    """What planish evaluate finds."""
    kind = tasks.MULTIPLE_CHOICE
    items = [
        tasks.Item(line=i, kind=kind, context=context, choices=choices, answer=answer)
        for i, (context, choices, answer) in enumerate(ITEMS)
    ]
    fixed = server.served.tokenizer, 512, False
    return tasks.judge_items(engine, items, [tasks.encode_item("f", x, *fixed) for x in items])


def test_its_tokenizer_is_the_servers(client, server):
    """lm_eval needs no other if /tokenizer_info names an eos_token and /tokenize lists tokens."""
    assert client.info("eos_token") == "</s>" and client.info("bos_token") == "<s>"
    assert client.encode("<s>") == [server.served.config.bos_token_id]
    text = "é </s>\n"
    assert client.post("/detokenize", tokens=client.encode(text))["prompt"] == text


def test_its_log_likelihoods_are_those_of_evaluate(client, judged):
    for (context, choices, _), expected in zip(ITEMS, judged, strict=True):
        found = client.score([client.encode_pair(context, choice) for choice in choices])
        assert [one for one, _ in found] == pytest.approx(expected.log_likelihoods, abs=1e-4)
        assert tuple(greedy for _, greedy in found) == expected.greedy


def test_eight_at_a_time_and_alone_are_the_same_to_the_bit(client):
    pairs = [client.encode_pair(context, one) for context, some, _ in ITEMS for one in some]
    alone = [client.score([pair])[0] for pair in pairs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda pair: client.score([pair])[0], pairs)) == alone
    assert client.score(pairs) == alone  # --batch_size 8


def test_what_greedy_decoding_writes_is_greedy(client):
    context = client.encode("A quick")
    (text,) = client.generate([context], stop=[], max_tokens=3, logprobs=0)
    ids = client.encode(text)
    assert client.score([(context, ids[:1]), (context, [5])])[0][1]
    assert not client.score([(context, [5])])[0][1]


def test_its_rolling_log_likelihood_is_that_of_perplexity(client, engine):
    """lm_eval keeps one position for a generated token and one for context."""
    text = (POCKET / "heldout.txt").read_text()[:60]
    tokens, window = client.encode(text), LENGTH - 2
    (prefix,) = client.encode(client.info("bos_token"))
    total = sum(client.score([pair])[0][0] for pair in rolling_windows(tokens, prefix, window))
    found = rolling(lambda c, t: engine.score(c, [t])[0].losses, [(text, tokens)], prefix, window)
    assert found.windows == 3
    assert total == pytest.approx(found.log_likelihood, abs=1e-4 * len(tokens))


def test_its_generations_end_before_a_stop_string(client):
    prompts = [client.encode(context) for context, *_ in ITEMS]
    texts = client.generate(prompts, top_p=0.95)
    assert texts == [cut(text, UNTIL) for text in client.generate(prompts, stop=[])]
    assert client.generate(prompts[:1], stop=[*UNTIL, "</s>"]) == texts[:1]


def test_a_chat_task_is_answered(client):
    """local-chat-completions, with at most four stop strings."""
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    more = {"max_tokens": 5, "temperature": 0, "stop": UNTIL[:4], "seed": 1234}
    answer = client.post("/v1/chat/completions", messages=messages, model="tiny", **more)
    (choice,) = answer["choices"]
    assert choice["index"] == 0 and isinstance(choice["message"]["content"], str)


def cut(text: str, until: list[str]) -> str:
    """A text up to the first of the stop strings."""
    return text[: min(f"{text}{stop}".find(stop) for stop in until)]
