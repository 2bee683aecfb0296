"""Tasks: literal small numbers, and tokens as lm-evaluation-harness cuts them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.compare.quality import tasks
from planish.compare.quality.tasks import LAST_WORD, MULTIPLE_CHOICE, Item
from planish.reference.engine import Engine
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.evaluate import Scores
from planish.reference.text.tokenizer import load_tokenizer


def item(context="ab", choices=(" c", " dd"), answer=0, kind=MULTIPLE_CHOICE):
    return Item(line=3, kind=kind, context=context, choices=tuple(choices), answer=answer)


def score(*losses, likeliest=True):
    return Scores(losses=np.array(losses), likeliest=np.full(len(losses), likeliest))


class Words:
    """A tokenizer with a token for each word of a table, the longest first."""

    def __init__(self, *words):
        self.words = sorted(words, key=len, reverse=True)

    def encode(self, text, add_special_tokens=True):
        ids = []
        while text:
            word = next(word for word in self.words if text.startswith(word))
            ids.append(self.words.index(word))
            text = text[len(word) :]
        return ids

    def read(self, group):
        return self.texts(group.context), [self.texts(ids) for ids in group.continuations]

    def texts(self, ids):
        return [self.words[i] for i in ids]


@pytest.mark.parametrize(
    ("losses", "answer", "plain", "normalized"),
    [
        ([[1.0, 1.0], [3.0]], 0, 1, 0),  # sums 2 < 3; 2 / 1 byte > 3 / 4 bytes
        ([[1.0, 1.0], [3.0]], 1, 0, 1),
        ([[2.0], [2.0]], 0, 1, 0),  # a tie goes to the first, before it is divided
        ([[2.0], [8.0]], 0, 1, 1),  # and a tie of 2 / 1 with 8 / 4
        ([[2.0], [8.0]], 1, 0, 0),
    ],
)
def test_a_choice_is_judged_by_its_sum_and_by_its_bytes(losses, answer, plain, normalized):
    question = item(choices=(" c", " düd"), answer=answer)
    assert [tasks.count_bytes(choice) for choice in question.choices] == [1, 4]
    found = tasks.judge_item(question, [score(*each) for each in losses])
    assert found == {"accuracy": plain, "normalized_accuracy": normalized}


def test_bytes_do_not_count_the_space_before_a_choice():
    assert [tasks.count_bytes(x) for x in (" a", "a ", "\n a b", "é", "  ")] == [1, 2, 3, 2, 2]


def test_a_last_word_is_right_if_each_token_is_the_likeliest():
    question = item(choices=(" word",), kind=LAST_WORD)
    assert tasks.judge_item(question, [score(1.0, 0.5)]) == {"accuracy": 1, "loss": 1.5}
    half = Scores(losses=np.array([1.0, 0.5]), likeliest=np.array([True, False]))
    assert tasks.judge_item(question, [half]) == {"accuracy": 0, "loss": 1.5}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_model_that_gives_nan_is_an_error_that_names_the_line(bad):
    with pytest.raises(PromptError, match="line 3: the model gives NaN"):
        tasks.judge_item(item(), [score(1.0), score(bad)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the end", ("the", " end")),
        ("a b  c.\n", ("a b", "  c.")),
        ("a\nb", ("a", "\nb")),
        ("one", ("", "one")),
        ("  one ", ("", "  one ")),
    ],
)
def test_the_last_word_keeps_the_space_before_it(text, expected):
    assert tasks.split_last_word(text) == expected


def test_choices_share_their_context():
    words = Words("a", " b", " c", " d")
    (group,) = tasks.encode_item("f", item("a b", (" c", " d c")), words, 9)
    assert group.indices == (0, 1)
    assert words.read(group) == (["a", " b"], [[" c"], [" d", " c"]])


def test_spaces_at_the_end_of_a_context_belong_to_the_choices():
    words = Words("a", " b", " c", " ", "b", "c")
    (group,) = tasks.encode_item("f", item("a ", ("b", "c b")), words, 9)
    assert words.read(group) == (["a"], [[" b"], [" c", " b"]])


def test_a_token_across_the_end_of_the_context_is_cut_as_the_harness_cuts_it():
    """By the number of the context's tokens: "a" + "bc" is "ab" and "c", and scores "c"."""
    words = Words("a", "b", "ab", "c", "d")
    one, other = tasks.encode_item("f", item("a", ("bc", "cd")), words, 9)
    assert (one.indices, *words.read(one)) == ((0,), ["ab"], [["c"]])
    assert (other.indices, *words.read(other)) == ((1,), ["a"], [["c", "d"]])


def test_a_choice_without_a_token_is_refused():
    with pytest.raises(PromptError, match="f: line 3: choice 1: adds no token"):
        tasks.encode_item("f", item("a", ("cc", "b")), Words("a", "c", "ab"), 9)


def test_what_is_longer_than_the_model_is_refused():
    words = Words("a", "c")
    assert tasks.encode_item("f", item("aa", ("c", "cc")), words, 4)
    with pytest.raises(PromptError, match="f: line 3: is too long; expected at most 3.*found 4"):
        tasks.encode_item("f", item("aa", ("c", "cc")), words, 3)


def test_an_estimate_is_the_mean_and_its_standard_error():
    found = tasks.estimate(np.array([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert found.value == pytest.approx(0.6)
    assert found.standard_error == pytest.approx(math.sqrt(0.6 * 0.4 / 4))  # p (1 - p) / (n - 1)
    assert math.isnan(tasks.estimate(np.ones(1)).standard_error)


def test_a_difference_is_paired():
    """Both are uncertain by 0.29; they differ on one item of four, which alone is uncertain."""
    ours, others = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0, 0.0])
    found = tasks.pair("accuracy", ours, others)
    assert (found.value, found.better, found.worse) == (-0.25, 0, 1)
    assert found.standard_error == pytest.approx(0.25)
    same = tasks.pair("accuracy", ours, ours)
    assert (same.value, same.standard_error, same.better, same.worse) == (0, 0, 0, 0)
    less = tasks.pair("loss", np.array([1.0, 2.0, 2.0]), np.array([2.0, 3.0, 1.0]))
    assert (less.better, less.worse) == (2, 1)


def test_figures_are_those_of_whole_texts(tiny_llama):
    """Each choice scored by itself, from the logits of context and choice in one."""
    checkpoint = open_checkpoint(tiny_llama)
    engine, tokenizer = Engine(checkpoint), load_tokenizer(tiny_llama, checkpoint.config)
    items = [item("A fox", (" jumps over", " x", " éa"), answer) for answer in range(3)]
    encoded = [tasks.encode_item("f", one, tokenizer, 128) for one in items]
    found = tasks.measure_items(engine, items, encoded)

    def log_p(choice):
        whole, count = tokenizer.encode("A fox" + choice), len(tokenizer.encode("A fox"))
        return -engine.losses(whole)[count - 1 :].sum()

    sums = np.array([log_p(choice) for choice in items[0].choices])
    np.testing.assert_array_equal(found["accuracy"], np.arange(3) == sums.argmax())
    best = (sums / [10, 1, 3]).argmax()
    np.testing.assert_array_equal(found["normalized_accuracy"], np.arange(3) == best)
