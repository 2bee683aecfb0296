"""Pages of 128 slots, from which the rows of a session's cache are made.

    row 0   [ 7 ][ 2 ][ 9 ]                 the page of its slots 0..127, 128..255, ..
    row 1   [ 7 ][ 2 ][ 4 ]                 shares a prefix of 256 tokens with row 0

A page that is full never changes, so rows that begin with the same tokens share it, and it is kept
when they end: `Pages` knows the tokens of each, from the step that computes them on. The last page
of a prefix, which others would overwrite, is copied instead, so reuse is exact to the token. What
is kept never needs more than the pool: the pages that were used longest ago make room.

Where a prompt was scored its scores are kept, too, so that one that is to be scored needs no logits
of the prefix that they share.

A prefix is shared only among requests of the same salt, because how long an answer takes says
whether its prompt was known.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from planish.reference.text.requests import TokenScore

PAGE = 128  # slots; kernels/table.h has the same number

Parent = int | bytes  # the page before, or the salt of a first page
Scores = tuple[TokenScore | None, ...]


@dataclass(frozen=True, kw_only=True)
class Known:
    """The tokens that are in a page, the scores of the first of them, and the page before."""

    parent: Parent
    tokens: tuple[int, ...]
    scores: Scores = ()

    def shared(self, tokens: Sequence[int], listed: int | None) -> int:
        """How many of these tokens the page begins with, with scores that list so many tokens."""
        count = common_length(self.tokens, tokens)
        if listed is None:
            return count
        count = min(count, len(self.scores))
        few = (i for i, one in enumerate(self.scores[:count]) if one and len(one.top) < listed)
        return next(few, count)


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What is known of a prompt: whole pages, and `count` tokens of another page, to be copied.

    scores: of a prompt that is scored, of these tokens and the one after."""

    pages: tuple[int, ...] = ()
    partial: int | None = None
    count: int = 0
    scores: Scores = ()

    @property
    def length(self) -> int:
        """Tokens that need not be computed."""
        return len(self.pages) * PAGE + self.count

    def without_partial(self) -> Prefix:
        """The whole pages only."""
        scores = self.scores[: len(self.pages) * PAGE + 1]
        return replace(self, partial=None, count=0, scores=scores)

    def without_last(self) -> Prefix:
        """One token less, and its score."""
        if self.count > 1:
            return replace(self, count=self.count - 1)
        if self.count or not self.pages:
            return replace(self, partial=None, count=0)
        return replace(self, pages=self.pages[:-1], partial=self.pages[-1], count=PAGE - 1)


@dataclass
class Pages:
    """Which pages are free, how many rows use each of the others, and what is known of them."""

    count: int
    free: list[int] = field(init=False)
    uses: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    known: dict[int, Known] = field(default_factory=dict)
    after: dict[Parent, set[int]] = field(default_factory=lambda: defaultdict(set))
    unused: OrderedDict[int, None] = field(default_factory=OrderedDict)  # known; oldest first

    def __post_init__(self) -> None:
        self.free = list(range(self.count - 1, -1, -1))

    @property
    def available(self) -> int:
        """Pages that `take` could give."""
        return len(self.free) + len(self.unused)

    def find(self, tokens: Sequence[int], salt: bytes, listed: int | None = None) -> Prefix:
        """The longest known prefix of a prompt, without its last token, which must be computed.

        listed: the likeliest tokens wanted beside each score of a prompt that is scored, and then
        a token less, since the score of the first one after the prefix comes from it; or None."""
        wanted, parent = tuple(tokens if listed is not None else tokens[:-1]), self._first(salt)
        pages, scores = list[int](), list[TokenScore | None]()
        while True:
            start = len(pages) * PAGE
            page, count = self._best(parent, wanted[start : start + PAGE], listed)
            if page is not None and listed is not None:
                scores += (cut(one, listed) for one in self.known[page].scores[:count])
            if page is None or count < PAGE:
                break
            pages.append(page)
            parent = page
        prefix = Prefix(pages=tuple(pages), partial=page, count=count, scores=tuple(scores))
        return prefix if listed is None else prefix.without_last()

    def _best(
        self, parent: Parent, tokens: tuple[int, ...], listed: int | None
    ) -> tuple[int | None, int]:
        """The page after `parent` that shares most tokens, and how many it shares."""
        best, most = None, 0
        for page in sorted(self.after.get(parent, ())):
            count = self.known[page].shared(tokens, listed)
            if count > most:
                best, most = page, count
        return best, most

    def use(self, pages: Sequence[int]) -> None:
        """One more row uses these pages."""
        for page in pages:
            self.uses[page] += 1
            self.unused.pop(page, None)

    def take(self, count: int) -> list[int]:
        """Free pages, used by one row; `available` must suffice."""
        while len(self.free) < count:
            self._forget(next(iter(self.unused)))
        taken = [self.free.pop() for _ in range(count)]
        self.use(taken)
        return taken

    def learn(
        self, pages: Sequence[int], tokens: Sequence[int], salt: bytes, scores: Scores = ()
    ) -> None:
        """A row's pages have the keys and values of these tokens, which become known.

        scores: of the first of them."""
        parent: Parent | None = self._first(salt)
        for number, page in enumerate(pages):
            part = slice(number * PAGE, (number + 1) * PAGE)
            some = tuple(tokens[part])
            if parent is None or not some:
                return
            known = Known(parent=parent, tokens=some, scores=scores[part][: len(some)])
            parent = self._learn(page, known)

    def give_back(self, pages: Sequence[int]) -> None:
        """A row does without these pages."""
        for page in reversed(pages):  # a page is older than the one before it
            self._give_back(page)

    def _learn(self, page: int, new: Known) -> int | None:
        """Remember a page, unless the same is known. The page that others may follow, if any."""
        old = self.known.get(page)
        if old is not None and len(old.tokens) < len(new.tokens):  # its row has filled it further
            self._unlearn(page)
        siblings = [page] if page in self.known else self.after[new.parent]
        same = next((p for p in siblings if self.known[p].tokens == new.tokens), None)
        if same is None:
            self.known[page] = new
            self.after[new.parent].add(page)
            same = page
        elif extent(new.scores) > extent(self.known[same].scores):
            self.known[same] = replace(self.known[same], scores=new.scores)
        return same if len(new.tokens) == PAGE else None

    def _unlearn(self, page: int) -> None:
        """Know the page no more."""
        known = self.known.pop(page)
        if known.parent in self.after:
            self.after[known.parent].discard(page)

    def _give_back(self, page: int) -> None:
        self.uses[page] -= 1
        if self.uses[page]:
            return
        del self.uses[page]
        if page in self.known:
            self.unused[page] = None
        else:
            self.free.append(page)

    def _forget(self, page: int) -> None:
        """Free a page that nobody uses, and those after it, which could not be found without it."""
        for later in sorted(self.after.pop(page, ())):
            self._forget(later)
        self._unlearn(page)
        if page in self.unused:
            del self.unused[page]
            self.free.append(page)

    @staticmethod
    def _first(salt: bytes) -> Parent:
        return bytes(salt)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def extent(scores: Scores) -> tuple[int, int]:
    """How many tokens are scored, and how many are listed beside the last."""
    last = scores[-1] if scores else None
    return len(scores), 0 if last is None else len(last.top)


def cut(score: TokenScore | None, listed: int) -> TokenScore | None:
    """A score with fewer of the likeliest tokens."""
    return None if score is None else replace(score, top=score.top[:listed])


def pages_for(tokens: int) -> int:
    """The pages of so many slots."""
    return -(-tokens // PAGE)
