"""The rows of a session, and the tokens that one step computes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from planish.fast.native.sampling import can_sample
from planish.fast.session.lookup import Guesser
from planish.fast.session.sampling import RowDraw
from planish.reference.text.constraint import Matcher
from planish.reference.text.requests import Request, TokenScore

STEP_TOKENS = (8, 16, 32, 64, 128, 256, 512)  # a step is padded to one of these
SCORED_TOKENS = 64  # of a prompt whose every token is scored
MOST_KEPT = 5  # likeliest tokens beside each score that is kept with its page


@dataclass(kw_only=True)
class Row:
    """A request that has a row of the cache."""

    handle: int
    request: Request
    number: int  # the row
    pages: list[int]
    tokens: list[int]  # the prompt and the answer
    written: int  # tokens whose keys and values are in the pages
    cached: int  # of these, found in the pages
    scores: list[TokenScore | None] = field(default_factory=lambda: [None])
    guesser: Guesser = field(init=False)
    matcher: Matcher | None = field(init=False)

    def __post_init__(self) -> None:
        self.guesser = Guesser(tokens=self.tokens)
        wanted = self.request.constraint
        self.matcher = None if wanted is None else wanted()

    @property
    def is_reading(self) -> bool:
        """Whether its prompt is not done."""
        return self.unread > 0

    @property
    def unread(self) -> int:
        """Tokens of its prompt that are not computed."""
        return len(self.request.prompt) - self.written

    @property
    def is_scored(self) -> bool:
        """Whether every token of its prompt is scored."""
        return self.request.prompt_logprobs is not None

    @property
    def kept_scores(self) -> tuple[TokenScore | None, ...]:
        """The scores of its prompt that are kept for others."""
        return tuple(self.scores) if can_keep(self.request.prompt_logprobs) else ()

    def helps(self, request: Request) -> bool:
        """Whether what is computed of its prompt need not be computed for this request."""
        own, wanted = self.request.prompt_logprobs, request.prompt_logprobs
        has_scores = wanted is None or (own is not None and can_keep(own) and own >= wanted)
        return self.is_reading and self.request.salt == request.salt and has_scores

    @property
    def is_complete(self) -> bool:
        """Whether its constraint lets nothing follow."""
        return self.matcher is not None and self.matcher.is_complete

    @property
    def text(self) -> list[int]:
        """The answer so far."""
        return self.tokens[len(self.request.prompt) :]

    @property
    def new(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Tokens of a row's prompt: `count`, from the first one that is not computed."""

    row: Row
    first: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is done with it."""
        return self.first + self.count == len(self.row.request.prompt)

    @property
    def wanted(self) -> range:
        """Those of its tokens whose logits are wanted: all if they are scored, else the prompt's
        last."""
        if self.row.is_scored:
            return range(self.count)
        return range(self.count - self.is_last, self.count)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The tokens of one step: of rows that are answered, then parts of prompts."""

    rows: list[int]
    tokens: list[int]
    positions: list[int]
    wanted: list[int]  # indices of tokens whose logits are wanted


def make_plan(answering: Sequence[Row], parts: Sequence[Part]) -> Plan:
    """The last token of rows that are answered, then the tokens of `parts`."""
    rows = [row.number for row in answering]
    tokens = [row.tokens[-1] for row in answering]
    positions = [len(row.tokens) - 1 for row in answering]
    wanted = list(range(len(rows)))
    for part in parts:
        row, first = part.row, part.first
        wanted += [len(rows) + i for i in part.wanted]
        rows += [row.number] * part.count
        tokens += row.tokens[first : first + part.count]
        positions += range(first, first + part.count)
    return Plan(rows=rows, tokens=tokens, positions=positions, wanted=wanted)


def make_verification(rows: Sequence[Row], guesses: Sequence[Sequence[int]]) -> Plan:
    """The last token of every row and its guesses, of which all logits are wanted."""
    tokens, positions, numbers = list[int](), list[int](), list[int]()
    for row, some in zip(rows, guesses, strict=True):
        tokens += [row.tokens[-1], *some]
        positions += range(len(row.tokens) - 1, len(row.tokens) + len(some))
        numbers += [row.number] * (len(some) + 1)
    return Plan(rows=numbers, tokens=tokens, positions=positions, wanted=list(range(len(tokens))))


def padding_plan(size: int, wanted: int = 1) -> Plan:
    """A step of no row."""
    nothing = [0] * size
    return Plan(rows=[-1] * size, tokens=nothing, positions=nothing, wanted=list(range(wanted)))


def wanted_size(count: int, few: int) -> int:
    """How many tokens' logits a step computes: `few`, or those of scores."""
    return few if count <= few else SCORED_TOKENS


def can_keep(listed: int | None) -> bool:
    """Whether scores beside which so many tokens are listed are kept; None: no scores."""
    return listed is not None and listed <= MOST_KEPT


def tokens_of(request: Request) -> int:
    """Slots that a request takes: its last new token needs none."""
    return len(request.prompt) + max(request.max_new_tokens - 1, 0)


def samples_on_device(row: Row) -> bool:
    """Whether the kernels sample its next tokens, and nothing else is wanted of the logits."""
    request = row.request
    wanted = request.logprobs is not None or request.constraint is not None
    return not wanted and not request.excluded(row.new) and can_sample(request.sampling)


def draw_of(row: Row) -> RowDraw:
    """How the device draws a row's next tokens."""
    request = row.request
    return RowDraw(sampling=request.sampling, row=request.choice, step=row.new, ends=request.ends)
