"""Does an engine compute what the reference defines? planish's own, or another one.

Three levels: every operation on the same inputs, every module of every layer on the reference's
inputs, the whole model. Exit code 0 where all agree, 3 where something differs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from planish.opening import keep_programs, native_kernels, open_model, open_subject, with_attention
from planish.reference.files.load import Checkpoint
from planish.reference.text.tokenizer import read_text
from planish.terminal.flags import (
    add_attention_flags,
    add_cache_flag,
    add_kernels_flag,
    add_model_flag,
)
from planish.terminal.given import notice_idle
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import print_json
from planish.terminal.progress import progress

if TYPE_CHECKING:
    from planish.compare.conformance.verdict import Report

AGREE, DIFFER = 0, 3
SUBJECTS = ("planish", "transformers")
ENGINE_FLAGS = ("--attention", "--kv_cache", "--kernels", "--compilation_cache")


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument(
        "--prompt_file",
        action="append",
        metavar="FILE",
        help="UTF-8 text; several files are joined (default: random tokens)",
    )
    parser.add_argument(
        "--subject",
        choices=SUBJECTS,
        default="planish",
        help="planish (default): the fast engine; transformers: its float model, layer by layer",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    engine = parser.add_argument_group("the engine")
    add_attention_flags(engine)
    add_kernels_flag(engine)
    add_cache_flag(engine)


def run(args: argparse.Namespace) -> int:
    other = args.subject != "planish"
    if not other:
        keep_programs(args.compilation_cache)
    with interrupts_kill():
        from planish.compare.conformance import report

    tokens = None
    if args.prompt_file is None:
        checkpoint = open_subject(args)
    else:
        checkpoint, tokenizer = open_model(args)
        tokens = tokenizer.encode("".join(map(read_text, args.prompt_file)))
    notice_idle(args, (other, f"with --subject {args.subject}", ENGINE_FLAGS))
    if other:
        result = judge_transformers(checkpoint, tokens)
    else:
        checkpoint, native = with_attention(checkpoint, args), native_kernels(args)
        result = report.run(checkpoint, tokens, progress, native=native)
    if args.json:
        print_json(result.as_dict())
    else:
        print(result.table())
    return AGREE if result.agree else DIFFER


def judge_transformers(checkpoint: Checkpoint, tokens: Sequence[int] | None) -> Report:
    """Judge the model as transformers runs it; SubjectError if that is not installed."""
    with interrupts_kill():
        from planish.compare.conformance import report
        from planish.compare.conformance.hugging_face import hugging_face

        subject = hugging_face(checkpoint)
    return report.run(checkpoint, tokens, progress, subject=subject)
