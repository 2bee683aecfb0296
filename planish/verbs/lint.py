"""What is wrong or dangerous in a quantized checkpoint, whoever wrote it (docs/lint.md).

Every finding names the programs that it breaks, and the fix. Checkpoints that planish refuses to
load are read, too. Exit code 3 if there is an error; warnings and notes leave it at 0. With
--against: the relative error of each linear, the ten worst as text, all as JSON.
"""

from __future__ import annotations

import argparse
from typing import Any

from planish.compare.lint.against import require_float
from planish.compare.lint.report import as_text, describe, describe_errors
from planish.compare.lint.run import lint
from planish.reference.errors import CheckpointError
from planish.reference.files.load import open_checkpoint
from planish.terminal.flags import add_links_flag
from planish.terminal.given import notice_idle
from planish.terminal.output import print_json

WRONG = 3  # exit code


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    words = "a Hugging Face directory, or a GGUF file"
    what.add_argument("path", nargs="?", metavar="DIR_OR_GGUF", help=words)
    what.add_argument("--model", metavar="DIR", help="the same")
    words = "the float model that it was quantized from"
    parser.add_argument("--against", metavar="FLOAT_DIR", help=words)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_links_flag(parser.add_argument_group("the model"))


def run(args: argparse.Namespace) -> int:
    notice_idle(args)
    facts = collect(args)
    if args.json:
        print_json(facts)
    else:
        print(as_text(facts))
    return WRONG if facts["errors"] else 0


def collect(args: argparse.Namespace) -> dict[str, Any]:
    """What lint finds; CheckpointError if no linear has a counterpart in the float model."""
    floats = None if args.against is None else open_checkpoint(args.against, args.allow_links)
    if floats is None:
        return describe(lint(args.path or args.model, args.allow_links))
    require_float(floats)
    linted = lint(args.path or args.model, args.allow_links, floats)
    if linted.linears and not linted.errors:
        expected = "the float model of these linears"
        found = next(iter(linted.skipped.values()), None)
        raise CheckpointError(
            "has no linear to compare", path=args.against, expected=expected, found=found
        )
    return describe(linted, describe_errors(args.against, linted.errors, linted.skipped))
