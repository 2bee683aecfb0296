"""Quantize language models to 8 and 4 bits, and run them on CPUs.

`planish VERB --help` lists a verb's flags; `python -m planish VERB` is the same command.

Exit codes: 0 done, 2 bad input (one line on stderr), 3 compare found a difference, lint an error,
or a search missed its tolerance, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import itertools
import logging
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from planish import __version__
from planish.joining import (
    BAD_INPUT,
    FOLLOWED,
    LAUNCHED,
    code_of_end,
    end_together,
    faults_reported,
)
from planish.reference.errors import LOGGER, PeerEndedError, PlanishError, one_line, suggest
from planish.reference.memory import memory_errors
from planish.terminal.interrupts import interrupts_raised
from planish.terminal.streams import flush_output, open_streams
from planish.terminal.threads import add_threads_flag, prepare_threads

VERBS = {
    "generate": "continue a prompt",
    "chat": "talk with a model",
    "serve": "answer requests over HTTP, in the form of OpenAI's API",
    "quantize": "quantize a model to 8 or 4 bits",
    "convert": "write a model in another program's format, or in floats",
    "perplexity": "measure a model on a text",
    "quality": "measure what each recipe costs a model",
    "evaluate": "measure how often a model answers right",
    "logits": "write the logits of given tokens",
    "compare": "check the fast engine against the reference",
    "vectors": "write conformance vectors for a kernel, or check its results",
    "inspect": "show what a model directory contains",
    "lint": "find what is wrong or dangerous in a quantized checkpoint",
    "bench": "measure speed, and compare it with the machine's limits",
    "launch": "run a verb on several processes of this machine",
    "plan": "see which models fit which machines, and how fast they would be",
}
THE_VERBS = f"expected one of {', '.join(VERBS)}"
NEED_NO_THREADS = ("convert", "inspect", "launch", "lint", "plan", "vectors")
FREE_TEXT = "TEXT"  # metavar of a flag whose value may be any word, even the name of a flag
INTERRUPTED = 130
INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")
VERB = "argument VERB: "


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, with the nearest valid word; exit code 2."""

    def error(self, message: str) -> NoReturn:
        if found := INVALID_CHOICE.search(message):
            message += suggest(found[1], re.findall(r"[\w.]+", found[2]))
        if found and message.startswith(VERB):
            message = f"unknown verb {found[1]!r}{suggest(found[1], VERBS)}; {THE_VERBS}"
        sys.stderr.write(f"error: {one_line(message)}; see {self.prog} --help\n")
        sys.exit(BAD_INPUT)

    def hint_at_flag(self, word: str) -> str:
        """What a word without dashes may have been meant to be."""
        if f"--{word}" in self._option_string_actions:
            return f" (did you mean --{word}?)"
        is_dir = os.path.isdir(word)  # noqa: PTH112  (Path.is_dir raises for a long word)
        return " (did you mean --model DIR?)" if is_dir else ""

    def join_values(self, words: Sequence[str]) -> list[str]:
        """Join each value to its flag by =, because it may begin with dashes.

        Refuses an unknown flag, and a word that is not the value of a flag, with a better message
        than argparse. A known flag is a value only of a flag that takes free text.
        """
        known, joined, rest = self._option_string_actions, [], deque(words)
        while rest and rest[0] != "--":
            word = rest.popleft()
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                self.error(f"unknown flag {flag}{self.hint_at_dashes() or suggest(flag, known)}")
            if not word.startswith("-") and self._get_positional_actions():
                joined.append(word)
                continue
            if not word.startswith("-"):
                self.error(
                    f"unexpected {word!r}{self.hint_at_flag(word)}: every value follows a flag"
                )
            if rest and word in known and known[word].nargs is None:
                free = known[word].metavar == FREE_TEXT
                if free or rest[0].partition("=")[0] not in (*known, "--"):
                    word += f"={rest.popleft()}"
            joined.append(word)
        return [*joined, *rest]

    def hint_at_dashes(self) -> str:
        """For a verb that runs another: the flags of that one come after --."""
        metavars = [str(action.metavar) for action in self._get_positional_actions()]
        dashed = next((name for name in metavars if name.startswith("-- ")), None)
        return f" (another verb and its flags come after --, as {dashed})" if dashed else ""

    def check_first(self, words: Sequence[str]) -> None:
        """Refuse an unknown flag before the verb."""
        for word in words:
            if word.startswith("-") and word not in self._option_string_actions:
                near = suggest(word, self._option_string_actions)
                self.error(f"unknown flag {word}{near}; the verb comes first")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Keep the value `--` of `--prompt=--`, which older Pythons drop."""
        if action.nargs is None and action.option_strings and arg_strings == ["--"]:
            value = self._get_value(action, "--")
            self._check_value(action, value)
            return value
        return super()._get_values(action, arg_strings)


def collect_flags(words: Iterable[str]) -> dict[str, list[str]]:
    """Each flag among joined words, with its values as typed."""
    given: dict[str, list[str]] = {}
    for word in itertools.takewhile(lambda word: word != "--", words):
        flag, _, value = word.partition("=")
        if flag.startswith("--"):
            given.setdefault(flag, []).append(value)
    return given


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Imports only the module of its verb."""
    words = [*argv[2:], "--help"] if argv[1:2] == ["help"] else list(argv[1:])
    wanted = next((word for word in words if not word.startswith("-")), None)
    first = words.index(wanted) + 1 if wanted else len(words)
    parser = Parser(prog="planish", description=__doc__, formatter_class=top_format)
    parser.add_argument("--version", action="version", version=f"planish {__version__}")
    if not words:
        parser.error(f"a verb is missing: {THE_VERBS}")
    parser.check_first(words[:first])
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        if verb == wanted:
            words[first:] = add_verb(sub, verb, words[first:])
    return parser.parse_args(words)


def add_verb(parser: Parser, verb: str, words: list[str]) -> list[str]:
    """Add a verb's flags to its parser; returns the words with values joined to flags."""
    prepare_threads(words)
    module = importlib.import_module(f"planish.verbs.{verb}")
    parser.description = module.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    module.add_flags(parser)
    if verb not in NEED_NO_THREADS:
        add_threads_flag(parser)
    joined = parser.join_values(words)
    parser.set_defaults(run=module.run, given=collect_flags(joined))
    return joined


def top_format(prog: str) -> argparse.HelpFormatter:
    """Show each verb with its summary in one line; argparse ignores that verbs are indented."""
    formatter = argparse.RawTextHelpFormatter(prog)
    formatter._action_max_length = 4 + max(map(len, VERBS))
    return formatter


def run(args: argparse.Namespace) -> int:
    """Run a verb; an error of the input becomes one line and exit code 2."""
    try:
        remedy = "a smaller model, or less input at a time"
        with interrupts_raised(), notices_printed(), memory_errors(remedy), faults_reported():
            code: int = args.run(args)
            return code
    except PeerEndedError as error:
        return FOLLOWED if LAUNCHED in os.environ else complain(str(error))
    except PlanishError as error:
        return complain(str(error))
    except BrokenPipeError:  # the reader of stdout has gone
        return 0
    except OSError as error:
        return complain(describe_error(error))


class NoticePrinter(logging.Handler):
    """Notices as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def notices_printed() -> Iterator[None]:
    """While a verb runs, print notices of all rooms to stderr, and nowhere else."""
    printer = NoticePrinter()
    LOGGER.addHandler(printer)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.propagate = True
        LOGGER.removeHandler(printer)


def describe_error(error: OSError) -> str:
    """The file, and the system's message."""
    return f"{error.filename or 'input or output'}: {error.strerror or error}"


def complain(message: str) -> int:
    """Print one line on stderr, even if the message has several."""
    print(f"error: {one_line(message)}", file=sys.stderr)
    return BAD_INPUT


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    open_streams()
    try:
        code: Any = run(parse(sys.argv if argv is None else argv))
    except KeyboardInterrupt:
        if LAUNCHED not in os.environ:  # planish launch says it once
            print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    except SystemExit as end:
        code = code_of_end(end.code)
    problem = flush_output()
    code = complain(describe_error(problem)) if problem and not code else code
    end_together(code)
    sys.exit(code)
