"""evaluate: files of items, figures, pairs of models, and what it refuses."""

from __future__ import annotations

import json

import pytest

CHOICE = {"context": "A quick", "choices": [" fox", " dog jumps", " cat"], "answer": 1}
LINE = json.dumps(CHOICE)


@pytest.fixture
def write(tmp_path):
    """Write lines to a task; returns its path."""

    def write(*lines):
        file = tmp_path / "task.jsonl"
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        file.write_text("\n".join(text) + "\n", encoding="utf-8")
        return file

    return write


@pytest.fixture
def evaluate(planish, tiny_llama):
    """planish evaluate on a task, by the reference."""

    def run(task, *words):
        common = ("--model", tiny_llama, "--task", task, "--engine", "reference")
        return planish("evaluate", *common, *words)

    return run


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_multiple_choice_as_json(planish, tiny_llama, write, engine):
    task = write(*({**CHOICE, "answer": answer} for answer in range(3)), "")
    words = ("--model", tiny_llama, "--task", task, "--engine", engine, "--json")
    values = planish("evaluate", *words).only_json()
    assert (values["kind"], values["items"]) == ("multiple choice", 3)
    for name in ("accuracy", "normalized_accuracy"):  # one of the three answers is the likeliest
        assert values["metrics"][name]["value"] == pytest.approx(1 / 3)
        assert values["metrics"][name]["standard_error"] == pytest.approx(1 / 3)
    assert "against" not in values


@pytest.mark.whole
def test_last_words_against_another_model(planish, tiny_llama, make_llama, write, tmp_path):
    task, other = (
        write({"text": "A quick fox"}, {"text": "jumps over it", "id": 7}),
        make_llama(seed=1),
    )
    words = ("--model", tiny_llama, "--task", task, "--against", other, "--kernels", "xla")
    values = planish("evaluate", *words, "--json").only_json()
    assert values["kind"] == "last word"
    ours, against = values["metrics"]["loss"], values["against"]
    theirs, difference = against["metrics"]["loss"], against["differences"]["loss"]
    assert 0 < ours["value"] != theirs["value"] > 0
    assert difference["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert difference["better"] + difference["worse"] == 2
    alone = planish("evaluate", "--model", other, *words[2:4], "--json").only_json()
    assert alone["metrics"]["loss"]["value"] == pytest.approx(theirs["value"], rel=1e-5)


def test_a_model_does_not_differ_from_itself(evaluate, tiny_llama, write):
    result = evaluate(write(LINE, LINE), "--against", tiny_llama)
    assert result.code == 0
    assert result.out.count("+0.0000 ± 0.0000 (better on 0 items, worse on 0)") == 2


def test_one_item_has_no_standard_error(evaluate, write):
    task = write({"text": "A fox"})
    assert "± unknown" in evaluate(task).out
    assert evaluate(task, "--json").only_json()["metrics"]["loss"]["standard_error"] is None


def test_choices_without_a_space_have_a_notice(evaluate, write):
    result = evaluate(write({**CHOICE, "choices": ["a", "b", "c"]}))
    assert result.code == 0 and "joined as written" in result.err
    assert evaluate(write({**CHOICE, "context": "A ", "choices": ["a", "b"]})).err == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", ["is not JSON", '"choices"']),
        ("[1]", ["is not an object"]),
        ("{}", ["context: is missing", "no field"]),
        ({"context": "a", "choices": [" b", " c"]}, ["answer: is missing", "context, choices"]),
        ({**CHOICE, "context": 3}, ["context: bad value", "found 3"]),
        ({**CHOICE, "context": " \n"}, ["context: is blank"]),
        ({**CHOICE, "choices": " b"}, ["choices: bad value", "at least two"]),
        ({**CHOICE, "choices": [" b"]}, ["choices: bad value", "at least two"]),
        ({**CHOICE, "choices": [" b", ""]}, ["choice 1: bad value"]),
        ({**CHOICE, "choices": [" b", None]}, ["choice 1: bad value", "None"]),
        ({**CHOICE, "answer": 3}, ["answer: bad value", "0..2", "found 3"]),
        ({**CHOICE, "answer": -1}, ["answer: bad value", "0..2"]),
        ({**CHOICE, "answer": "1"}, ["answer: bad value", "'1'"]),
        ({**CHOICE, "answer": True}, ["answer: bad value", "True"]),
        ({"text": "word"}, ["text: is too short", "two words"]),
        ({"text": ""}, ["text: bad value"]),
        ('{"text": "a \\ud800"}', ["text: is not text", "surrogate"]),
        ({"text": "two words"}, ["mixes kinds", "multiple choice, as line 1", "last word"]),
        ({**CHOICE, "choices": [" b", " c" * 100]}, ["is too long", "at most 128", "found 207"]),
    ],
)
def test_a_bad_line_is_refused_by_its_number(evaluate, write, line, expected):
    task = write(LINE, "", line, LINE)
    assert evaluate(task).refused(str(task), "line 3", *expected)


def test_a_file_without_items_is_refused(evaluate, write, tmp_path):
    assert evaluate(write("", " ")).refused("contains no item", '{"text": "..."}')
    assert evaluate(tmp_path / "none.jsonl").refused("none.jsonl", "cannot be read")


def test_a_model_to_compare_with_must_be_one(evaluate, write, tmp_path):
    result = evaluate(write(LINE), "--against", tmp_path / "none")
    assert result.refused("none", "not a directory")


def test_samples_are_what_each_item_was_given(evaluate, tiny_llama, write, tmp_path):
    task, out = write(LINE, {**CHOICE, "context": "Two"}), tmp_path / "samples.jsonl"
    values = evaluate(task, "--samples", out, "--against", tiny_llama, "--json").only_json()
    samples = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["line"] for one in samples] == [1, 2]
    for one in samples:
        others = one.pop("against")
        assert {"line": one["line"], **others} == one
        sums = one["log_likelihoods"]
        assert len(sums) == len(one["greedy"]) == 3 and max(sums) < 0
        assert one["accuracy"] == (sums.index(max(sums)) == CHOICE["answer"])
    mean = sum(one["accuracy"] for one in samples) / 2
    assert values["metrics"]["accuracy"]["value"] == mean


def test_special_tokens_can_be_left_out(make_llama, planish, write, tmp_path):
    """A tokenizer that adds BOS: with it the same as a context that begins with it."""
    model = make_llama()
    file = model / "tokenizer.json"
    pieces = [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    adding = {"single": pieces, "pair": [*pieces, {"Sequence": {"id": "B", "type_id": 0}}]}
    special = {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}}
    content = json.loads(file.read_text())
    content["post_processor"] = {"type": "TemplateProcessing", **adding, "special_tokens": special}
    file.write_text(json.dumps(content))
    sums = []
    for context, words in (
        ("A quick", ()),
        ("<s>A quick", ("--no_special_tokens",)),
        ("A quick", ("--no_special_tokens",)),
    ):
        task, out = write({**CHOICE, "context": context}), tmp_path / "samples.jsonl"
        common = ("--model", model, "--task", task, "--engine", "reference", "--samples", out)
        assert planish("evaluate", *common, *words).code == 0
        sums.append(json.loads(out.read_text())["log_likelihoods"])
    assert sums[0] == sums[1] != sums[2]


def test_a_task_of_lm_eval_is_refused(evaluate, tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text("task: mine\n")
    assert evaluate(task).refused("task.yaml", "FILE.jsonl", "lm_eval", "planish serve")
