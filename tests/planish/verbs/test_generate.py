"""planish generate: what it prints, and every prompt and number it refuses."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer

from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.files.load import open_checkpoint
from planish.reference.text.evaluate import log_softmax
from planish.reference.text.tokenizer import load_tokenizer

REFERENCE = ("--engine", "reference")


@pytest.fixture
def generate(planish, tiny_llama):
    """generate(...) on the tiny model, by the reference unless another engine is asked for."""

    def call(*words, model=tiny_llama, engine="reference"):
        return planish("generate", "--model", model, "--engine", engine, *words)

    return call


def test_text_goes_to_stdout_and_figures_to_stderr(generate):
    result = generate("--prompt", "abc", "--max_new_tokens", 8)
    assert result.code == 0 and result.out.endswith("\n") and len(result.out) > 1
    assert "prompt 3 tokens" in result.err and "tokens/s" in result.err


@pytest.mark.parametrize("more", [(), ("--temperature", 0.8, "--top_k", 40, "--seed", 3)])
def test_both_engines_write_the_same_text(generate, more):
    words = ("--prompt", "Hello", "--max_new_tokens", 12, *more)
    exact, fast = generate(*words), generate(*words, engine="fast")
    assert exact.code == fast.code == 0
    assert exact.out == fast.out
    assert "compile" in fast.err


def test_a_prompt_file_is_the_same_as_its_text(generate, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("Grüße", encoding="utf-8")
    from_file = generate("--prompt_file", file, "--max_new_tokens", 8)
    assert from_file.code == 0
    assert from_file.out == generate("--prompt", "Grüße", "--max_new_tokens", 8).out


def test_without_a_prompt_it_begins_from_bos(generate):
    result = generate("--max_new_tokens", 4)
    assert result.code == 0 and "prompt 1 token;" in result.err


def test_without_a_prompt_and_without_bos_it_says_so(generate, make_llama):
    assert generate(model=make_llama(bos_token_id=None)).refused("prompt", "bos")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_several_prompts_give_each_its_own_completion(generate, engine):
    texts = ["a", "some words", "xyz"]
    alone = [generate("--prompt", text, "--max_new_tokens", 6, engine=engine).out for text in texts]
    words = [word for text in texts for word in ("--prompt", text)]
    together = generate(*words, "--max_new_tokens", 6, engine=engine)
    assert together.out == "\n\n".join(text.removesuffix("\n") for text in alone) + "\n"


def test_text_ends_before_a_stop_string(generate):
    whole = generate("--prompt", "abc", "--max_new_tokens", 40).out.removesuffix("\n")
    stop = whole[7:9]
    cut = generate("--prompt", "abc", "--max_new_tokens", 40, "--stop", stop)
    assert cut.out == whole[: whole.index(stop)] + "\n"


def test_a_stopped_row_stays_stopped_while_others_go_on(generate):
    whole = generate("--prompt", "abc", "--max_new_tokens", 40).out.removesuffix("\n")
    stop = whole[7:9]
    words = ("--prompt", "abc", "--prompt", "other", "--max_new_tokens", 40, "--stop", stop)
    first = generate(*words, engine="fast").out.split("\n\n")[0]
    assert first == whole[: whole.index(stop)]


def test_a_stop_string_that_is_a_special_token_ends_the_text(generate, make_llama):
    model = make_llama(eos_token_id=first_token("abc", make_llama(name="plain")))
    file = model / "tokenizer.json"
    inner = Tokenizer.from_file(str(file))
    values = json.loads((model / "config.json").read_text())
    stop = inner.id_to_token(values["eos_token_id"])
    inner.add_special_tokens([stop])
    inner.save(str(file))
    words = ("--prompt", "abc", "--prompt", "ab", "--max_new_tokens", 4, "--ignore_eos")
    whole = generate(*words, model=model).out.split("\n\n")
    ended = generate(*words, "--stop", stop, model=model).out.split("\n\n")
    assert len(whole[0]) > 0 and ended[0] == ""


def test_eos_ends_the_text_unless_ignored(generate, make_llama):
    eos = first_token("abc", make_llama(name="plain"))
    model = make_llama(eos_token_id=eos)
    assert generate("--prompt", "abc", "--max_new_tokens", 4, model=model).out == "\n"
    longer = generate("--prompt", "abc", "--ignore_eos", "--max_new_tokens", 4, model=model)
    assert len(longer.out) > 1


def first_token(text: str, model) -> int:
    """The greedy token behind a text."""
    checkpoint = open_checkpoint(model)
    tokens = load_tokenizer(model, checkpoint.config).encode(text)
    return int(np.argmax(ReferenceEngine(checkpoint).forward(tokens)[-1]))


def test_no_new_tokens_is_an_empty_line(generate):
    result = generate("--prompt", "abc", "--max_new_tokens", 0)
    assert (result.code, result.out) == (0, "\n")


# 128 positions; the last new token is never fed back and needs none
@pytest.mark.matrix(4)
@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(("length", "new"), [(128, 1), (127, 2), (127, 1), (64, 65), (128, 0)])
def test_what_fits_the_cache_to_the_last_slot_is_computed(generate, engine, length, new):
    words = ("--prompt", "x" * length, "--max_new_tokens", new, "--ignore_eos")
    result = generate(*words, engine=engine)
    assert result.code == 0
    assert f"prompt {length} tokens" in result.err or new == 0


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize(("length", "new"), [(129, 0), (129, 1), (128, 2), (127, 3), (64, 66)])
def test_what_does_not_fit_the_cache_is_refused(generate, engine, length, new):
    words = ("--prompt", "x" * length, "--max_new_tokens", new)
    assert generate(*words, engine=engine).refused("prompt", "do not fit", "128")


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--prompt", ""], ["prompt", "is empty"]),
        (["--prompt", "a", "--prompt", ""], ["prompt", "is empty"]),
        (["--prompt", "a\udcffb"], ["prompt", "surrogate"]),
        (["--prompt_file", "/no/such/file"], ["/no/such/file", "No such file"]),
        (["--prompt_file", "/"], ["/", "directory"]),
        (["--max_new_tokens", "-1"], ["max_new_tokens", "-1"]),
        (["--max_new_tokens", 10**30], ["do not fit"]),
        (["--temperature", "nan"], ["temperature", "nan"]),
        (["--temperature", "-1"], ["temperature", "-1"]),
        (["--temperature", "inf"], ["temperature", "inf"]),
        (["--top_p", "0"], ["top_p", "0.0"]),
        (["--top_p", "1.5"], ["top_p", "1.5"]),
        (["--top_p", "nan"], ["top_p", "nan"]),
        (["--top_k", "99999999"], ["top_k", "0..300", "99999999"]),
        (["--top_k", "-2"], ["top_k", "-2"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--seed", 2**64], ["seed"]),
        (["--stop", ""], ["stop", "is empty"]),
    ],
    ids=lambda value: " ".join(map(str, value)).encode("ascii", "replace").decode()[:30],
)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_bad_input_is_refused_before_anything_is_computed(generate, engine, words, expected):
    more = () if words[0].startswith("--prompt") else ("--prompt", "abc")
    assert generate(*words, *more, engine=engine).refused(*expected)


def test_a_prompt_file_must_be_utf8_and_not_empty(generate, tmp_path):
    latin, empty = tmp_path / "latin.txt", tmp_path / "empty.txt"
    latin.write_bytes("Grüße".encode("latin-1"))
    empty.write_bytes(b"")
    assert generate("--prompt_file", latin).refused("latin.txt", "UTF-8", "byte 2")
    assert generate("--prompt_file", empty).refused("is empty")


def test_a_prompt_that_is_no_text_is_refused_in_a_shell(shell, tiny_llama):
    result = shell(
        "generate", "--model", tiny_llama, "--prompt", b"a\xff".decode(errors="surrogateescape")
    )
    assert result.refused("prompt", "surrogate")


def test_a_compilation_cache_that_cannot_be_made_is_refused(generate, tiny_llama):
    where = tiny_llama / "config.json" / "cache"
    result = generate("--compilation_cache", where, engine="fast")
    assert result.refused("compilation_cache", "config.json")


@pytest.mark.parametrize(("length", "room"), [(128, 1), (28, 101)])
def test_without_a_number_as_many_tokens_come_as_fit(generate, length, room):
    result = generate("--prompt", "x" * length, "--ignore_eos")
    limits = "the model's 128 positions leave no more"
    assert result.code == 0
    assert f"max_new_tokens: {room} instead of 128, as {limits}\n" in result.err


def test_without_a_number_a_prompt_with_room_gets_128_and_one_without_is_refused(generate):
    assert "128 new tokens" in (result := generate("--prompt", "x", "--ignore_eos")).err
    assert "instead" not in result.err
    assert generate("--prompt", "x" * 129).refused("do not fit", "128", "129")


def test_json_is_one_object_and_nothing_else(generate):
    words = ("--prompt", "abc", "--prompt", "other", "--max_new_tokens", 5, "--ignore_eos")
    plain, result = generate(*words), generate(*words, "--json", "--seed", 7)
    values = json.loads(result.out)
    assert result.out.count("\n") == 1 and "tokens/s" not in result.err
    assert "\n\n".join(each["text"] for each in values["completions"]) + "\n" == plain.out
    assert [len(each["tokens"]) for each in values["completions"]] == [5, 5]
    counts = [(each["prompt_tokens"], each["new_tokens"]) for each in values["completions"]]
    assert counts == [(3, 5), (5, 5)]
    assert (values["engine"], values["seed"]) == ("reference", 7)
    assert values["load_seconds"] > 0 and values["seconds"] > 0 == values["compile_seconds"]


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_json_says_why_each_text_ended(generate, make_llama, engine):
    whole = generate("--prompt", "abc", "--max_new_tokens", 40).out.removesuffix("\n")
    words = ("--prompt", "abc", "--max_new_tokens", 4, "--json")
    stopped = json.loads(generate(*words[:2], "--stop", whole[7:9], "--json", engine=engine).out)
    assert stopped["completions"][0]["stop_reason"] == "stop"
    assert stopped["completions"][0]["text"] == whole[: whole.index(whole[7:9])]
    long = json.loads(generate(*words, "--ignore_eos", engine=engine).out)["completions"][0]
    assert (long["stop_reason"], long["new_tokens"]) == ("length", 4)
    model = make_llama(eos_token_id=first_token("abc", make_llama(name="plain")))
    ended = json.loads(generate(*words, model=model, engine=engine).out)["completions"][0]
    assert ended == {
        "text": "",
        "tokens": [],
        "prompt_tokens": 3,
        "new_tokens": 0,
        "stop_reason": "eos",
    }


def test_prompts_come_from_a_file_of_json_lines(generate, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "abc"}\n{"prompt": "other"}\n')
    few = ("--max_new_tokens", 5)
    assert generate("--prompt_file", file, *few).out == (
        generate("--prompt", "abc", "--prompt", "other", *few).out
    )
    file.write_text('{"prompt": "abc"}\n{"prompt": 1}\n')
    assert generate("--prompt_file", file).refused("prompts.jsonl", "line 2", "prompt")


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"


@pytest.fixture
def chat_model(make_llama):
    path = make_llama()
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


def test_chat_is_the_prompt_that_the_template_writes(generate, chat_model, tmp_path):
    words = ("--max_new_tokens", 6, "--json")
    asked = generate("--chat", "--prompt", "Hi", *words, model=chat_model).only_json()
    typed = generate("--prompt", "<user>Hi</>", *words, model=chat_model).only_json()
    assert asked["completions"] == typed["completions"]
    system = ("--chat", "--system", "Be", "--prompt", "Hi")
    asked = generate(*system, *words, model=chat_model).only_json()
    typed = generate("--prompt", "<system>Be</><user>Hi</>", *words, model=chat_model).only_json()
    assert asked["completions"] == typed["completions"]
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}?")
    mine = ("--chat", "--chat_template", tmp_path / "mine.jinja", "--prompt", "Hi")
    asked = generate(*mine, *words, model=chat_model).only_json()
    typed = generate("--prompt", "Hi?", *words, model=chat_model).only_json()
    assert asked["completions"] == typed["completions"]


def test_chat_without_a_template_a_message_or_its_flag_is_refused(generate, chat_model, tiny_llama):
    assert generate("--chat", "--prompt", "Hi").refused("no chat template: a base model")
    assert generate("--chat", model=chat_model).refused("prompt: is missing", "with --chat")
    assert generate("--system", "Be", "--prompt", "Hi").refused("--system: is for --chat")
    (chat_model / "chat_template.jinja").write_text("{{ raise_exception('no users') }}")
    refused = generate("--chat", "--prompt", "Hi", model=chat_model)
    assert refused.refused("chat_template: refuses the conversation: no users")


def test_the_tokenizers_eos_token_ends_a_text(generate, chat_model):
    words = ("--prompt", "abc", "--max_new_tokens", 8, "--json")
    tokens = generate(*words, "--ignore_eos", model=chat_model).only_json()["completions"][0]
    third = tokens["tokens"][2]
    text = Tokenizer.from_file(str(chat_model / "tokenizer.json")).id_to_token(third)
    values = json.dumps({"eos_token": text})
    (chat_model / "tokenizer_config.json").write_text(values)
    ended = generate(*words, model=chat_model).only_json()["completions"][0]
    assert ended["stop_reason"] == "eos"
    assert ended["tokens"] == tokens["tokens"][: tokens["tokens"].index(third)]


def test_a_bias_of_100_is_the_only_token(generate):
    words = ("--prompt", "Hi", "--max_new_tokens", 4, "--logit_bias", "7:100", "--json")
    assert generate(*words).only_json()["completions"][0]["tokens"] == [7, 7, 7, 7]
    apart = (*words, "--logit_bias", "8:99", "--frequency_penalty", 2, "--presence_penalty", 1)
    assert generate(*apart).only_json()["completions"][0]["tokens"] == [7, 8, 7, 8]


@pytest.mark.parametrize("bias", ["7", "a:1", "7:b", "7:101", "-1:1", "7:nan"])
def test_a_bias_that_is_none_is_refused(generate, bias):
    assert generate("--prompt", "Hi", "--logit_bias", bias).refused("logit_bias: bad value")


def test_min_p_has_no_effect_at_temperature_0(generate):
    result = generate("--prompt", "Hi", "--max_new_tokens", 2, "--min_p", 0.1)
    assert "--min_p: no effect at temperature 0" in result.err


SAMPLED = ("--prompt", "abc", "--max_new_tokens", 6, "--temperature", 2, "--ignore_eos")


def test_without_a_seed_each_run_differs_and_says_its_seed(generate):
    first, second = (generate(*SAMPLED, "--json").only_json() for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["completions"][0]["tokens"] != second["completions"][0]["tokens"]
    again = generate(*SAMPLED, "--json", "--seed", first["seed"]).only_json()
    assert again["completions"] == first["completions"]
    shown = generate(*SAMPLED)
    seed = re.search(r"; seed (\d+)$", shown.err.strip())[1]
    assert generate(*SAMPLED, "--seed", seed).out == shown.out
    assert "seed" not in generate(*SAMPLED, "--seed", seed).err


def test_a_greedy_text_has_no_seed_to_report(generate):
    result = generate("--prompt", "abc", "--max_new_tokens", 4)
    assert "seed" not in result.err


@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_n_texts_of_a_prompt_differ_in_their_draws(generate, engine):
    words = (*SAMPLED, "--seed", 3, "--json")
    several = generate(*words, "--n", 3, engine=engine).only_json()["completions"]
    assert [(each["prompt"], each["choice"]) for each in several] == [(0, 0), (0, 1), (0, 2)]
    alone = generate(*words, engine=engine).only_json()["completions"][0]
    assert several[0]["tokens"] == alone["tokens"] and "choice" not in alone
    assert len({tuple(each["tokens"]) for each in several}) == 3
    assert all(each["prompt_tokens"] == 3 for each in several)


def test_n_texts_are_printed_apart(generate):
    result = generate("--prompt", "a", "--prompt", "xyz", "--n", 2, "--max_new_tokens", 5)
    texts = result.out.removesuffix("\n").split("\n\n")
    assert len(texts) == 4 and texts[0] == texts[1] and texts[2] == texts[3]


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_logprobs_are_those_of_the_raw_logits(generate, tiny_llama, engine):
    words = ("--prompt", "abc", "--prompt", "other", "--max_new_tokens", 4, "--ignore_eos")
    words += ("--json", "--repetition_penalty", 1.3)
    plain = generate(*words, engine=engine).only_json()["completions"]
    scored = generate(*words, "--logprobs", 2, engine=engine).only_json()["completions"]
    assert [each["tokens"] for each in scored] == [each["tokens"] for each in plain]
    checkpoint = open_checkpoint(tiny_llama)
    tokenizer = load_tokenizer(tiny_llama, checkpoint.config)
    tokens = tokenizer.encode("abc")
    logits = ReferenceEngine(checkpoint).forward(tokens + scored[0]["tokens"])
    triples = zip(
        logits[len(tokens) - 1 :], scored[0]["tokens"], scored[0]["logprobs"], strict=False
    )
    for row, token, score in triples:
        expected = log_softmax(row)
        assert score["token"] == token
        assert score["logprob"] == pytest.approx(expected[token], abs=1e-4)
        assert [each["token"] for each in score["top"]] == np.argsort(-row)[:2].tolist()
        assert score["text"] == tokenizer.decode([token])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--n", 0], ["n: bad value", "1 or more"]),
        (["--logprobs", 1], ["--logprobs: is for --json"]),
        (["--logprobs", 21, "--json"], ["logprobs: bad value", "0..20"]),
        (["--logprobs", -1, "--json"], ["logprobs: bad value", "0..20"]),
    ],
)
def test_counts_out_of_range_are_refused(generate, words, expected):
    assert generate("--prompt", "abc", *words).refused(*expected)
