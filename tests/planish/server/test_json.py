"""response_format over HTTP: the same bytes alone and among others, streamed and whole, or 400."""

import json
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

POINT = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "at": {"type": "array", "items": {"enum": [0, 7]}, "maxItems": 2},
    },
    "required": ["name", "at"],
    "additionalProperties": False,
}


def asked(seed, wanted=POINT, **fields):
    schema = {"name": "point", "schema": wanted, "strict": True}
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": f"Point {seed}"}],
        "response_format": {"type": "json_schema", "json_schema": schema},
        "seed": seed,
        "max_tokens": 60,
        **fields,
    }


def test_constrained_answers_are_the_same_alone_and_among_others(server):
    client, spaces = server.client(), server.served.tokenizer.encode(" \n\t")
    no_space = {"logit_bias": {str(token): -100 for token in spaces}}

    def text(seed):
        fields = {"response_format": {"type": "text"}} if seed % 3 == 2 else no_space
        (choice,) = client.chat.completions.create(**asked(seed, **fields)).choices
        return choice.message.content, choice.finish_reason

    alone = [text(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(text, range(6))) == alone
    ended = [found for found, why in alone if why == "stop" and found.startswith("{")]
    assert ended
    for found in map(json.loads, ended):
        assert len(found["name"]) <= 4 and {*found["at"]} <= {0, 7}


def test_a_streamed_object_is_the_whole_one(server):
    client, fields = (
        server.client(),
        asked(1, response_format={"type": "json_object"}, max_tokens=20),
    )
    (choice,) = client.chat.completions.create(**fields).choices
    chunks = client.chat.completions.create(stream=True, **fields)
    parts = [chunk.choices[0] for chunk in chunks]
    assert "".join(part.delta.content or "" for part in parts) == choice.message.content
    assert parts[-1].finish_reason == choice.finish_reason and choice.message.content[0] == "{"


def test_a_schema_that_is_not_supported_is_400_and_others_go_on(server):
    client = server.client()
    for wanted in ({"not": {}}, {"type": "string", "pattern": "(("}, {"$ref": "#"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**asked(1, wanted))
        assert caught.value.param == "response_format.json_schema.schema"
    (choice,) = client.chat.completions.create(**asked(1, {"enum": ["yes"]})).choices
    assert choice.message.content == '"yes"'
