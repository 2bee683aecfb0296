"""JSON by a schema, token by token: llguidance says which tokens may come next.

A schema comes from a client, so everything about it has a limit: bytes, patterns, the work of
compiling and of each step, seconds. What exceeds one is refused before the request is queued, never
answered without its constraint. A compiled grammar belongs to one answer only: llguidance's copies
share the states of their lexer, and an answer must not depend on others.

Between the parts of JSON there is at most a space, or a newline with its indentation: a model that
repeats whitespace would never get further.

Source: https://github.com/guidance-ai/llguidance, docs/json_schema.md; Earley parsing over the
derivatives of regular expressions.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from planish.openai.bodies import refuse
from planish.openai.errors import RequestRefused
from planish.reference.errors import PlanishError, one_line
from planish.reference.text.tokenizer import Tokenizer
from planish.reference.text.tokenizer_file import hide_panics, library_errors

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

Result = TypeVar("Result")

SCHEMA = "response_format.json_schema.schema"  # the field
LARGEST = 2**16  # bytes of a schema
LONGEST_PATTERN, MOST_PATTERNS = 512, 4096  # characters of a pattern, and of all
LONGEST_STRING = 4096  # characters of a constant
MOST_REMAINDERS = 10_000  # of multipleOf: the library has a state for each, and no limit
COMPILE_SECONDS = 5.0  # for all choices
STACK = 2**28  # bytes, for references a thousand deep: the library recurses
SHOWN = 300  # characters of its words
OPTIONS: JsonCompileOptions = {
    "whitespace_pattern": r"[ ]?|\n[ \t]{0,40}",
    "lenient": False,
    "coerce_one_of": False,
}
LIMITS = LLParserLimits(
    initial_lexer_fuel=300_000,
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_items_in_row=2_000,
    max_lexer_states=50_000,
    max_grammar_size=100_000,
    precompute_large_lexemes=False,
    verbose_errors=False,
)


class Grammars:
    """Compiles schemas for one tokenizer. rows: V, the tokens that have logits."""

    def __init__(self, tokenizer: Tokenizer, rows: int, eos: Sequence[int]):
        self.rows = rows
        self.moved = sorted({*tokenizer.moved, *tokenizer.moved.values()})  # two ids each
        with library_errors(tokenizer.path, "cannot be constrained"), hide_panics():
            self.tokenizer = LLTokenizer(tokenizer.inner.to_str(), eos_token=list(eos) or None)
        self.latest: Future[Any] = Future()  # what is being compiled, or was
        self.latest.set_result(None)

    def prepare(
        self, schema: dict[str, Any], ends: Sequence[int], count: int
    ) -> list[Callable[[], JsonMatcher]]:
        """Constraints of `count` answers that `ends` may end. RequestRefused for a schema that
        llguidance does not know, or that takes too much."""
        text = write_schema(schema)
        stop = time.monotonic() + COMPILE_SECONDS

        def compile_all() -> list[Callable[[], JsonMatcher]]:
            found = list[Callable[[], JsonMatcher]]()
            for _ in range(count):
                if time.monotonic() > stop:
                    raise too_long()
                found.append(Prepared(grammars=self, text=text, ends=tuple(ends)))
            return found

        if not self.latest.done():  # it took too long; let there be one such thread at most
            problem = "response_format: an earlier schema is still being compiled"
            raise RequestRefused(problem, status=503, param="response_format")
        self.latest = running = run_deep(compile_all)
        return result_of(running)

    def matcher(self, text: str, ends: Sequence[int]) -> JsonMatcher:
        """A fresh matcher, of which the first steps are tried."""
        grammar = LLMatcher.grammar_from_json_schema(text, overrides=OPTIONS)
        for attempt in (True, False):
            inner = LLMatcher(self.tokenizer, grammar, log_level=0, limits=LIMITS)
            matcher = JsonMatcher(grammars=self, inner=inner, ends=list(ends))
            if attempt:
                matcher.try_out()
        return matcher


@dataclass(eq=False)
class Prepared:
    """A constraint whose matcher is ready; who asks again waits for another."""

    grammars: Grammars
    text: str
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        self.ready = [self.grammars.matcher(self.text, self.ends)]

    def __call__(self) -> JsonMatcher:
        return self.ready.pop() if self.ready else self.grammars.matcher(self.text, self.ends)


@dataclass(kw_only=True)
class JsonMatcher:
    """The grammar of one answer, as far as it has come: a Matcher of reference/text."""

    grammars: Grammars
    inner: LLMatcher
    ends: list[int]

    def __post_init__(self) -> None:
        self._check()

    @property
    def is_complete(self) -> bool:
        return self.inner.is_stopped() and not self.inner.is_error()

    def allowed(self) -> np.ndarray:
        """bool [V]. Ends are allowed where the value is whole; an ordinary token that a client
        named as an end is also text."""
        bits = np.frombuffer(self.inner.compute_bitmask(), np.uint8)
        self._check()
        rows, tokenizer = self.grammars.rows, self.grammars.tokenizer
        known = min(rows, tokenizer.vocab_size)
        allowed = np.zeros(rows, np.bool_)
        allowed[:known] = np.unpackbits(bits, count=known, bitorder="little")
        allowed[[i for i in self.grammars.moved if i < rows]] = False
        if self.inner.is_accepting():
            allowed[[i for i in tokenizer.eos_tokens if i < rows]] = False
            allowed[self.ends] = True
        return allowed

    def accept(self, token: int) -> None:
        self.inner.consume_token(token)
        self._check()

    def try_out(self) -> None:
        """Take two steps, so that what is impossible or too large is known at once."""
        for _ in range(2):
            allowed = self.allowed()
            allowed[self.ends] = False
            if allowed.any():
                self.accept(int(np.argmax(allowed)))

    def _check(self) -> None:
        if self.inner.is_error():
            words = one_line(self.inner.get_error().replace("<non-verbose/>", "").strip())
            raise PlanishError(f"cannot be kept: {words[:SHOWN]}", name="response_format")


def write_schema(schema: dict[str, Any]) -> str:
    """A schema as JSON, within the limits of its size; without llguidance's own options, by which
    a client could have commas replaced."""
    schema = {name: value for name, value in schema.items() if name != "x-guidance"}
    text = json.dumps(schema, separators=(",", ":"))
    if len(text) > LARGEST:
        raise refuse(SCHEMA, f"expected at most {LARGEST} bytes, found {len(text)}")
    sizes = [len(pattern) for pattern in patterns_of(schema)]
    if max(sizes, default=0) > LONGEST_PATTERN or sum(sizes) > MOST_PATTERNS:
        expected = f"at most {LONGEST_PATTERN} characters, {MOST_PATTERNS} of all"
        raise refuse(SCHEMA, f"patterns of {expected}; found {max(sizes)}, {sum(sizes)}")
    if remainders_of(schema) > MOST_REMAINDERS:
        expected = f"numbers whose least common multiple is at most {MOST_REMAINDERS}"
        raise refuse(SCHEMA, f"multipleOf: expected {expected}, in units of the last decimal")
    longest = max((len(string) for string in constants_of(schema)), default=0)
    if longest > LONGEST_STRING:
        raise refuse(SCHEMA, f"strings of at most {LONGEST_STRING} characters; found {longest}")
    return text


def objects_in(value: Any) -> Iterator[dict[str, Any]]:
    """All objects of a JSON value."""
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from objects_in(one)


def patterns_of(schema: Any) -> Iterator[str]:
    """Regular expressions, wherever one may be."""
    for one in objects_in(schema):
        if isinstance(one.get("pattern"), str):
            yield one["pattern"]
        if isinstance(one.get("patternProperties"), dict):
            yield from one["patternProperties"]


def constants_of(schema: Any) -> Iterator[str]:
    """Strings that an answer repeats: names of properties, and values."""
    for one in objects_in(schema):
        yield from one
        constants = [one.get("const"), *(one["enum"] if isinstance(one.get("enum"), list) else ())]
        yield from (constant for constant in constants if isinstance(constant, str))


def remainders_of(schema: Any) -> int:
    """The least common multiple of every multipleOf, in units of the finest one's decimals: in
    allOf they multiply."""
    values = [one.get("multipleOf") for one in objects_in(schema)]
    numbers = [v for v in values if isinstance(v, int | float) and v > 0]
    steps = [Fraction(str(number)) for number in numbers]
    unit = math.lcm(*(step.denominator for step in steps))
    return math.lcm(*(int(step * unit) for step in steps))


def run_deep(work: Callable[[], Result]) -> Future[Result]:
    """Run work that recurses deeply, in a thread with STACK bytes for it."""
    done: Future[Result] = Future()

    def run() -> None:
        try:
            with library_errors(None, "is not supported"):
                done.set_result(work())
        except BaseException as problem:
            done.set_exception(problem)

    before = threading.stack_size(STACK)
    try:
        threading.Thread(target=run, name="planish-grammar", daemon=True).start()
    finally:
        threading.stack_size(before)
    return done


def result_of(running: Future[Result]) -> Result:
    """What was compiled; RequestRefused if that failed or takes longer than COMPILE_SECONDS."""
    try:
        return running.result(COMPILE_SECONDS)
    except TimeoutError:
        raise too_long() from None
    except RequestRefused:
        raise
    except PlanishError as problem:
        raise refuse(SCHEMA, problem.problem) from None


def too_long() -> RequestRefused:
    return refuse(SCHEMA, f"takes longer than {COMPILE_SECONDS:g} s to compile for all choices")
