"""Write the ops level of compare as .npz files, or check a kernel's results on them.

--out writes inputs, codes, scales and expected results with a README.md and a manifest.json;
running a kernel on them does not need planish. --check reads DIR/results/NAME.npz, one array per
output, under its key, and reports the first mismatch. Exit code 0: all agree, 3: one differs, 2:
results cannot be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from planish.terminal.given import notice_idle
from planish.terminal.output import print_json

AGREE, DIFFER = 0, 3


def add_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", metavar="DIR", help="a new or empty directory to write to")
    what.add_argument("--check", metavar="DIR", help="a directory with your results")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the inputs (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    notice_idle(args, (args.check is not None, "with --check", ("--seed",)))
    if args.out is not None:
        return write(args)
    return check(args)


def write(args: argparse.Namespace) -> int:
    """Write the vectors, and print what to do next."""
    from planish.compare.conformance.vectors.files import write_vectors

    count = write_vectors(Path(args.out), args.seed)
    if args.json:
        print_json({"directory": args.out, "cases": count, "seed": args.seed})
    else:
        print(f"{args.out}: {count} cases; {args.out}/README.md says how to run a kernel on them")
    return AGREE


def check(args: argparse.Namespace) -> int:
    """Check the results, and print the first mismatch."""
    from planish.compare.conformance.vectors.files import check_vectors

    outcome = check_vectors(Path(args.check))
    first = None if outcome.first is None else str(outcome.first)
    if args.json:
        missing = list(outcome.missing)
        print_json(
            {
                "agree": first is None,
                "first_mismatch": first,
                "checked": outcome.checked,
                "without_results": missing,
            }
        )
    elif first is not None:
        print(f"DIFFER: {first}")
    else:
        rest = f"; {len(outcome.missing)} have no results" if outcome.missing else ""
        print(f"AGREE: {outcome.checked} cases{rest}")
    return AGREE if first is None else DIFFER
