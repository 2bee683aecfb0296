"""Pages: what is shared, kept and forgotten, and that none is lost or used twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.fast.session.pages import PAGE, Pages, common_length, pages_for
from planish.reference.text.requests import TokenScore

LONG = list(range(3 * PAGE))


def answered(pages, tokens, salt=b""):
    """A row that computed these tokens and ended."""
    prefix = pages.find(tokens, salt)
    pages.use(prefix.pages)
    own = [*prefix.pages, *pages.take(pages_for(len(tokens)) - len(prefix.pages))]
    pages.learn(own, tokens, salt)
    pages.give_back(own)
    return own


def test_nothing_is_known_at_first():
    pages = Pages(4)
    assert pages.find(LONG, b"").length == 0
    assert pages.available == 4


def test_whole_pages_of_a_prefix_are_shared_and_a_part_is_copied():
    pages = Pages(8)
    own = answered(pages, LONG[:300])
    prefix = pages.find([*LONG[:290], 7, 7, 7], b"")
    assert prefix.pages == tuple(own[:2])
    assert (prefix.partial, prefix.count, prefix.length) == (own[2], 34, 290)


def test_the_last_token_of_a_prompt_is_computed_even_if_it_is_known():
    pages = Pages(8)
    answered(pages, LONG[:300])
    assert pages.find(LONG[:300], b"").length == 299
    assert pages.find(LONG[: 2 * PAGE], b"").length == 2 * PAGE - 1


def test_another_salt_finds_nothing():
    pages = Pages(8)
    answered(pages, LONG[:300], b"key 1")
    assert pages.find(LONG[:300], b"key 2").length == 0
    assert pages.find(LONG[:300], b"key 1").length == 299


def test_the_same_tokens_are_kept_once():
    pages = Pages(8)
    first = answered(pages, LONG[:300])
    again = answered(pages, LONG[:300])
    assert again[:2] == first[:2]
    assert pages.available == 8
    assert len(pages.known) == 3


def test_the_pages_used_longest_ago_make_room():
    pages = Pages(4)
    answered(pages, LONG[: 2 * PAGE])
    answered(pages, [9] * PAGE)
    assert len(pages.take(2)) == 2  # one was free, one was the end of the first prefix
    assert pages.find([*LONG, 1], b"").length == PAGE
    assert pages.find([9] * PAGE + [1], b"").length == PAGE


def test_pages_in_use_are_not_given_away():
    pages = Pages(3)
    own = answered(pages, LONG[: 2 * PAGE])
    pages.use(own)
    assert pages.available == 1
    assert set(pages.take(1)).isdisjoint(own)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 5 * PAGE)), max_size=12))
def test_every_page_is_free_known_or_used_once(texts):
    pages = Pages(12)
    for kind, length in texts:
        answered(pages, [kind] * (length // 2) + [kind + 1] * (length - length // 2))
        assert pages.available == 12
        assert sorted([*pages.free, *pages.unused]) == list(range(12))
        for page, known in pages.known.items():
            assert page in pages.after[known.parent]


@pytest.mark.parametrize(
    ("one", "other", "count"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 5], [1, 6], 1)]
)
def test_common_length(one, other, count):
    assert common_length(one, other) == count


def scores(count, listed=1):
    """Of the first tokens of LONG."""
    top = tuple((number, -1.0) for number in range(listed))
    return (None, *(TokenScore(token=i, logprob=-2.0, top=top) for i in range(1, count)))


def test_what_a_row_has_computed_is_known_before_it_ends():
    pages = Pages(8)
    own = pages.take(3)
    pages.learn(own, LONG[:200], b"")
    assert pages.find(LONG, b"").pages == (own[0],)
    assert (pages.find(LONG, b"").partial, pages.find(LONG, b"").length) == (own[1], 200)
    pages.learn(own, LONG[:300], b"")
    prefix = pages.find(LONG, b"")
    assert (prefix.pages, prefix.partial, prefix.length) == ((own[0], own[1]), own[2], 300)
    pages.give_back(own)
    assert pages.available == 8 and len(pages.known) == 3


@pytest.mark.parametrize(
    ("count", "whole", "copied"), [(300, 2, 43), (257, 2, 0), (256, 1, 127), (1, 0, 0), (2, 0, 1)]
)
def test_scores_are_found_up_to_the_token_whose_logits_are_needed(count, whole, copied):
    """The last of the tokens is computed again: the score of the next one comes from it."""
    pages = Pages(8)
    own = pages.take(3)
    pages.learn(own, LONG[:count], b"", scores(count))
    found = pages.find([*LONG[:count], 7, 7], b"", 1)
    assert (len(found.pages), found.count, found.length) == (whole, copied, count - 1)
    assert (found.partial is not None) == bool(copied)
    assert found.scores == scores(count)
    assert len(found.without_partial().scores) == min(count, whole * PAGE + 1)


def test_a_prompt_that_is_scored_finds_no_prefix_without_its_scores():
    pages = Pages(8)
    answered(pages, LONG[:300])
    assert pages.find(LONG, b"", 0).length == 0
    own = pages.take(3)
    pages.learn(own, LONG[:300], b"", scores(200))
    assert pages.find(LONG, b"", 0).length == 199
    assert [one.top for one in pages.find(LONG, b"", 0).scores[1:]] == [()] * 199
    assert pages.find(LONG, b"", 2).length == 0
    pages.learn(own, LONG[:300], b"", scores(200, 5))
    assert pages.find(LONG, b"", 2).scores == scores(200, 2)
    assert pages.find(LONG, b"").length == 300
