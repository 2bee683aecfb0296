"""planish VERB ...  (also python -m planish VERB)

Exit codes: 0 done, 2 bad input (one line on stderr), 3 compare found a difference, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app
from absl import logging as absl_logging
from absl.flags import argparse_flags

from reference.errors import LOGGER, PlanishError
from reference.memory import memory_errors

VERBS = {
    "generate": "continue a prompt",
    "quantize": "write a model in 8 or 4 bits",
    "perplexity": "measure a model on a text",
    "logits": "write the logits of given tokens",
    "compare": "judge the fast engine by the reference",
    "inspect": "say what a model directory holds",
    "bench": "measure speed beside the machine's limits",
}
BAD_INPUT, INTERRUPTED, TERMINATED = 2, 130, 143
INVALID_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)")


class Parser(argparse_flags.ArgumentParser):
    """One line for a wrong command line, with the nearest right word, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        if found := INVALID_CHOICE.search(message):
            message += nearest(found[1], re.findall(r"\w+", found[2]))
        one_line = " ".join(message.split())
        sys.stderr.write(f"error: {one_line}; see {self.prog} --help\n")
        sys.exit(BAD_INPUT)

    def check_flags(self, words: Iterable[str]) -> None:
        """Refuse an unknown flag before argparse misses the one that it was meant to be."""
        for word in words:
            flag = word.partition("=")[0]
            if flag == "--":
                return
            if flag.startswith("--") and flag not in self._option_string_actions:
                self.error(f"unknown flag {flag}{nearest(flag, self._option_string_actions)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """What a misspelt word was probably meant to be."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of one verb. Only its own module is imported."""
    wanted = next((word for word in argv[1:] if word in VERBS), None)
    parser = Parser(
        prog="planish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, allow_abbrev=False)
        if verb == wanted:
            module = importlib.import_module(f"planish.{verb}")
            sub.description = module.__doc__
            sub.formatter_class = argparse.RawDescriptionHelpFormatter
            module.add_flags(sub)
            sub.set_defaults(run=module.run)
            sub.check_flags(argv[argv.index(verb) + 1 :])
    return parser.parse_args(argv[1:])


def run(args: argparse.Namespace) -> int:
    """Run a verb; what is the input's fault becomes one line and exit code 2."""
    absl_logging.set_verbosity(absl_logging.WARNING)
    signal.signal(signal.SIGTERM, terminate)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that cannot show a character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with notices_printed(), memory_errors("a smaller model, or less input at a time"):
            code = args.run(args)
        sys.stdout.flush()
        return code
    except PlanishError as error:
        return complain(str(error))
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = error.filename or "input or output"
        return complain(f"{where}: {error.strerror or error}")


class NoticePrinter(logging.Handler):
    """Notices as plain lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def notices_printed() -> Iterator[None]:
    """While a verb runs, what the rooms have to say goes to stderr, and nowhere else."""
    printer = NoticePrinter()
    LOGGER.addHandler(printer)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.propagate = True
        LOGGER.removeHandler(printer)


def complain(message: str) -> int:
    """One line on stderr, whatever the message holds."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def terminate(*_: Any) -> NoReturn:
    """SIGTERM unwinds like any exit, so that temporary files are removed."""
    sys.exit(TERMINATED)


def main(argv: Sequence[str] | None = None) -> None:
    """The console script."""
    try:
        app.run(run, argv=list(sys.argv if argv is None else argv), flags_parser=parse)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
