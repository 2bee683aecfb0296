"""The generation loop: when it stops, what it refuses, and stop strings split over tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.reference.engine import Engine
from planish.reference.errors import PromptError, SamplingError
from planish.reference.text.generate import Stop, StopStrings, check_fits, text_stream
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer, load_tokenizer
from tests.models import byte_tokenizer


class Letters:
    """A stream whose tokens are pieces of text themselves."""

    def __init__(self, rest=""):
        self.rest = rest

    def push(self, token):
        return token

    def finish(self):
        return self.rest


def streamed(tokens, strings, rest=""):
    stream, shown = StopStrings(Letters(rest), strings), []
    for token in tokens:
        shown.append(stream.push(token))
        if stream.stopped:
            break
    return [*shown, stream.finish()], stream.stopped


def test_a_stop_string_split_over_tokens_is_not_shown():
    assert streamed(["ab", "E", "N", "D", "x"], ["END"]) == (["ab", "", "", "", ""], True)


def test_what_only_began_like_a_stop_string_comes_out_late():
    assert streamed(["aE", "N", "b"], ["END"]) == (["a", "", "ENb", ""], False)
    assert streamed(["aE", "N"], ["END"]) == (["a", "", "EN"], False)


def test_the_first_of_several_stop_strings_ends_the_text():
    assert streamed(["one. two\n"], ["\n", "."]) == (["one", ""], True)


def test_a_stop_string_completed_by_the_last_held_piece_ends_the_text():
    assert streamed(["aE"], ["END"], rest="NDx") == (["a", ""], True)


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_the_text_shown_is_the_text_before_the_first_stop_string(text, strings):
    shown, stopped = streamed(list(text), strings)
    ends = [text.index(s) + len(s) for s in strings if s in text]
    if not ends:
        assert ("".join(shown), stopped) == (text, False)
    else:  # token by token: whichever is complete first
        first = text[: min(ends)]
        assert "".join(shown) == first[: min(first.index(s) for s in strings if s in first)]
        assert stopped


ADDED = {-1: "<e>", -2: "<f>", -3: "<think>"}  # <think> is not special: it is in the text
PIECES = {-1: "", -2: "", -3: " think "}


class Mixed(Letters):
    """Letters and added tokens, whose text the decoder may change."""

    def push(self, token):
        return PIECES.get(token, token)

    def settle(self):
        return ""


@pytest.mark.parametrize(
    ("tokens", "strings", "shown"),
    [
        (["a", -1, "b"], ["<e>"], "a"),
        (["a", -1, "b"], ["x", "<f>", "<e>"], "a"),
        (["a", -1, "\n", "b"], ["<e>\n"], "a"),
        (["a", -1, "c", "b"], ["<e>\n"], None),
        (["a", -1], ["<e>\n"], None),
        (["a", "x", -1, -2, "b"], ["x<e><f>"], "a"),
        (["a", -1, "b", -1], ["b<e>"], "a"),
        (["<", "e", ">", "b"], ["<e>"], ""),
        (["<e", -1, "b"], ["<e>"], "<e"),
        (["a", -2, "b", "c"], ["ab", "<e>"], ""),  # passed over, as no string names it
        (["a", -1, "b"], ["e>b"], None),  # does not occur in a special token's text
        (["a", -3, "b"], ["<think>"], "a"),
        (["a", -3, "b"], ["hin"], "a t"),
    ],
)
def test_a_special_token_in_a_stop_string_counts_as_its_text(tokens, strings, shown):
    stream = StopStrings(Mixed(), strings, ADDED)
    text = "".join([*(stream.push(token) for token in tokens), stream.finish()])
    whole = "".join(PIECES.get(token, token) for token in tokens)
    assert (text, stream.stopped) == ((whole, False) if shown is None else (shown, True))


def test_half_a_character_comes_out_before_the_special_token_that_stops():
    inner = byte_tokenizer()
    tokenizer = Tokenizer(inner, None, Path("tokenizer.json"))
    a, half, *_ = inner.encode("aé").ids
    stream = text_stream(tokenizer, [a], Stop(9, strings=("</s>",), ignore_eos=True))
    end = inner.token_to_id("</s>")
    shown = [stream.push(token) for token in (a, half, end, a)]
    assert shown == ["a", "", "\N{REPLACEMENT CHARACTER}", ""] and stream.stopped


def test_text_stream_joins_tokenizer_and_stop_strings(loaded, directories):
    checkpoint, _ = loaded["llama"]
    tokenizer = load_tokenizer(directories["llama"], checkpoint.config)
    stream = text_stream(tokenizer, [3], Stop(9, strings=("bc",)))
    assert [stream.push(token) for token in (3, 4, 5)] == ["a", "", ""] and stream.stopped


def generated(checkpoint, stop, prompts=((4, 5),), **config):
    engine = Engine(checkpoint)
    engine.config = replace(engine.config, **config)
    return list(engine.generate(prompts, stop, Sampling()))


def test_an_end_of_text_id_ends_its_row_and_is_not_yielded(loaded):
    checkpoint = loaded["llama"][0]
    everything = [t for _, t in generated(checkpoint, Stop(8, ignore_eos=True))]
    eos = everything[3]
    first = everything.index(eos)
    ended = generated(checkpoint, Stop(8), eos_token_ids=(47, eos))
    assert [t for _, t in ended] == everything[:first]
    both = generated(checkpoint, Stop(8), [(4, 5), (4, 5)], eos_token_ids=(eos,))
    assert [row for row, _ in both] == [0] * first + [1] * first
    assert len(generated(checkpoint, Stop(8, ignore_eos=True), eos_token_ids=(eos,))) == 8


def test_max_new_tokens_excludes_the_prompt_and_may_be_0(loaded):
    checkpoint = loaded["llama"][0]
    assert len(generated(checkpoint, Stop(5, ignore_eos=True))) == 5
    assert generated(checkpoint, Stop(0)) == []


def test_a_seed_gives_the_same_tokens(loaded):
    engine, stop = Engine(loaded["llama"][0]), Stop(12, ignore_eos=True)
    here, again, other = (
        list(engine.generate([[4]], stop, Sampling(temperature=1.5, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert here == again and here != other


@pytest.mark.parametrize(("prompt", "new"), [(64, 1), (64, 0), (60, 5), (1, 64)])
def test_what_just_fits_the_cache_is_taken(loaded, prompt, new):
    check_fits(loaded["llama"][0].config, [[1] * prompt], Stop(new), 64)


@pytest.mark.parametrize(("prompt", "new"), [(65, 0), (65, 1), (64, 2), (60, 6)])
def test_what_does_not_fit_the_cache_is_refused_with_both_numbers(loaded, prompt, new):
    message = f"{prompt} prompt tokens and {new} new ones do not fit; expected at most 64"
    with pytest.raises(PromptError, match=message):
        check_fits(loaded["llama"][0].config, [[1], [1] * prompt], Stop(new), 64)


def test_a_full_cache_is_used_to_its_last_slot(loaded):
    assert len(generated(loaded["llama"][0], Stop(5, ignore_eos=True), [[1] * 60])) == 5


@pytest.mark.parametrize(
    ("stop", "prompt", "error"),
    [
        (Stop(-1), [1], SamplingError),
        (Stop(1, strings=("",)), [1], SamplingError),
        (Stop(1), [], PromptError),
        (Stop(1), [48], PromptError),
        (Stop(1), [-1], PromptError),
    ],
)
def test_impossible_requests_are_refused_before_anything_runs(loaded, stop, prompt, error):
    with pytest.raises(error):
        check_fits(loaded["llama"][0].config, [prompt], stop, 64)
