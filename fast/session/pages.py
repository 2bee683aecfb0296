"""Pages of 128 slots, from which the rows of a session's cache are made.

    row 0   [ 7 ][ 2 ][ 9 ]                 the page of its slots 0..127, 128..255, ..
    row 1   [ 7 ][ 2 ][ 4 ]                 shares a prefix of 256 tokens with row 0

A page that is full never changes, so rows that begin with the same tokens share it, and it is kept
when they end: `Pages` knows the tokens of each. The last page of a prefix, which others would
overwrite, is copied instead, so reuse is exact to the token. What is kept never needs more than the
pool: the pages that were used longest ago make room.

A prefix is shared only among requests of the same salt, because how long an answer takes says
whether its prompt was known.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

PAGE = 128  # slots; kernels/table.h has the same number

Parent = int | bytes  # the page before, or the salt of a first page


@dataclass(frozen=True, kw_only=True)
class Known:
    """The tokens that are in a page, and the page of those before."""

    parent: Parent
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """What is known of a prompt: whole pages, and `count` tokens of another page, to be copied."""

    pages: tuple[int, ...] = ()
    partial: int | None = None
    count: int = 0

    @property
    def length(self) -> int:
        """Tokens that need not be computed."""
        return len(self.pages) * PAGE + self.count


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

    def find(self, tokens: Sequence[int], salt: bytes) -> Prefix:
        """The longest known prefix of a prompt, without its last token, which must be computed."""
        wanted, parent = tuple(tokens[:-1]), self._first(salt)
        pages: list[int] = []
        while True:
            rest = wanted[len(pages) * PAGE :]
            page, count = self._best(parent, rest)
            if page is None or count < PAGE:
                return Prefix(pages=tuple(pages), partial=page, count=count)
            pages.append(page)
            parent = page

    def _best(self, parent: Parent, tokens: tuple[int, ...]) -> tuple[int | None, int]:
        """The page after `parent` that shares most tokens, and how many it shares."""
        best, most = None, 0
        for page in sorted(self.after.get(parent, ())):
            count = common_length(self.known[page].tokens, tokens)
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

    def release(self, pages: Sequence[int], tokens: Sequence[int], salt: bytes) -> None:
        """A row ends. tokens: those whose keys and values its pages have; they become known."""
        parent: Parent | None = self._first(salt)
        for number, page in enumerate(pages):
            some = tuple(tokens[number * PAGE : (number + 1) * PAGE])
            parent = None if parent is None or not some else self._learn(page, parent, some)
        self.give_back(pages)

    def give_back(self, pages: Sequence[int]) -> None:
        """A row does without these pages."""
        for page in reversed(pages):  # a page is older than the one before it
            self._give_back(page)

    def _learn(self, page: int, parent: Parent, tokens: tuple[int, ...]) -> int | None:
        """Remember a page, unless the same is known. The page that others may follow, if any."""
        if page in self.known:
            return page
        same = next((p for p in self.after[parent] if self.known[p].tokens == tokens), None)
        if same is None:
            self.known[page] = Known(parent=parent, tokens=tokens)
            self.after[parent].add(page)
            same = page
        return same if len(tokens) == PAGE else None

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
        known = self.known.pop(page)
        if known.parent in self.after:
            self.after[known.parent].discard(page)
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


def pages_for(tokens: int) -> int:
    """The pages of so many slots."""
    return -(-tokens // PAGE)
