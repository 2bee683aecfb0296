"""planish VERB ...  (also python -m planish VERB)

Exit codes: 0 done, 2 bad input (one line on stderr), 3 compare found a difference, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import signal
import sys
from typing import NoReturn

from absl import app, logging
from absl.flags import argparse_flags

from reference.errors import PlanishError

VERBS = {
    "generate": "continue a prompt",
    "quantize": "write a model in 8 or 4 bits",
    "perplexity": "measure a model on a text",
    "logits": "write the logits of given tokens",
    "compare": "judge the fast engine by the reference",
    "inspect": "say what a model directory holds",
    "bench": "measure speed beside the machine's limits",
}


class Parser(argparse_flags.ArgumentParser):
    """One line for a wrong command line, with the nearest right word, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}{self.nearest(message)}; see {self.prog} --help\n")
        sys.exit(2)

    def nearest(self, message: str) -> str:
        """What an unknown flag or verb was probably meant to be."""
        known = [*self._option_string_actions, *VERBS]
        for word in message.replace("'", " ").split():
            near = difflib.get_close_matches(word.split("=")[0], known, n=1)
            if (
                near
                and near[0] != word
                and ("unrecognized" in message or "invalid choice" in message)
            ):
                return f" (did you mean {near[0]}?)"
        return ""


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags of one verb. Only its own module is imported."""
    wanted = next((word for word in argv[1:] if not word.startswith("-")), None)
    parser = Parser(
        prog="planish", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=Parser)
    for verb, summary in VERBS.items():
        sub = verbs.add_parser(verb, help=summary, description=summary, allow_abbrev=False)
        if verb == wanted:
            module = importlib.import_module(f"planish.{verb}")
            module.add_flags(sub)
            sub.set_defaults(run=module.run)
    return parser.parse_args(argv[1:])


def run(args: argparse.Namespace) -> int:
    """Run a verb; what is the input's fault becomes one line and exit code 2."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except PlanishError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return 2


def main() -> None:
    """The console script."""
    logging.set_verbosity(logging.WARNING)
    app.run(run, flags_parser=parse)


if __name__ == "__main__":
    main()
