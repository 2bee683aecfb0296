"""Does the fast engine compute what the reference defines?"""

from __future__ import annotations

import argparse

from planish.opening import keep_programs, native_kernels, open_model, open_subject, with_kv_cache
from planish.reference.text.tokenizer import read_text
from planish.terminal.flags import (
    add_cache_flag,
    add_kernels_flag,
    add_kv_cache_flag,
    add_model_flag,
)
from planish.terminal.given import notice_idle
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.progress import progress

AGREE, DIFFER = 0, 3


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument(
        "--prompt_file",
        action="append",
        metavar="FILE",
        help="UTF-8; several are joined (default: drawn at random)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_kv_cache_flag(parser)
    add_kernels_flag(parser)
    add_cache_flag(parser)


def run(args: argparse.Namespace) -> int:
    keep_programs(args.compilation_cache)
    with interrupts_kill():
        from planish.compare.conformance import report

    tokens = None
    if args.prompt_file is None:
        checkpoint = open_subject(args)
    else:
        checkpoint, tokenizer = open_model(args)
        tokens = tokenizer.encode("".join(map(read_text, args.prompt_file)))
    notice_idle(args)
    checkpoint, native = with_kv_cache(checkpoint, args), native_kernels(args)
    result = report.run(checkpoint, tokens, progress, native=native)
    if args.json:
        print_json(result.as_dict())
    else:
        print(result.table())
    return AGREE if result.agree else DIFFER
