"""generate --requests: a file of requests, as a server would answer them, into a file of answers.

OUT appears when all are answered. What a run that was stopped has answered is in OUT.partial, and
--resume goes on after it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import __version__
from planish.opening import open_model
from planish.reference.errors import OutputError, PromptError, notice
from planish.reference.reading import read_file
from planish.terminal.extras import require_packages
from planish.terminal.given import engine_rule, notice_idle, refuse_given
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import counted
from planish.terminal.progress import progress
from planish.terminal.sampling import ADJUSTMENTS
from planish.verbs.serve import Serving, describe_model, facts, open_warm_session

if TYPE_CHECKING:
    from planish.openai.answer_file import AnswerFile

OWN = ("--out", "--resume", "--slots")
LINES_SAY = (  # what each line of the file says for itself
    *("--prompt", "--prompt_file", "--chat", "--system", "--max_new_tokens", "--json"),
    *("--temperature", "--top_k", "--top_p", "--min_p", *ADJUSTMENTS),
    *("--stop", "--ignore_eos", "--n", "--logprobs"),
)


def add_request_flags(parser: argparse.ArgumentParser) -> None:
    """Answer a file of requests instead of prompts."""
    group = parser.add_argument_group("a file of requests")
    group.add_argument(
        "--requests",
        metavar="FILE",
        help='FILE.jsonl with a line {"custom_id", "method", "url", "body"} for each request, as'
        ' of OpenAI\'s batches, or {"prompt": "text", "max_tokens": 5}; instead of prompts',
    )
    group.add_argument("--out", metavar="FILE", help="the file of the answers, for --requests")
    group.add_argument(
        "--resume", action="store_true", help="go on with --requests after the last answer"
    )
    group.add_argument(
        "--slots",
        type=int,
        default=8,
        metavar="N",
        help="requests that are answered at the same time (default: 8)",
    )


def refuse_request_flags(args: argparse.Namespace) -> None:
    """Refuse the flags of --requests without it."""
    if args.requests is None:
        refuse_given(args, OWN, "is for --requests")


def run(args: argparse.Namespace) -> int:
    refuse_given(args, LINES_SAY, "is not for --requests, whose lines say it for themselves")
    if args.out is None:
        raise OutputError("is missing", name="--out", expected="a file for the answers")
    require_packages("--requests", ("pydantic",), extra="serve")
    with interrupts_kill():
        from planish.openai.answer_file import AnswerFile
        from planish.openai.batch import Batch, left_of, read_lines

    lines = read_lines(args.requests)
    answers = AnswerFile(args.out, args.resume, f"planish {__version__}")
    answers.check()
    alone = (args.engine == "reference", "with --engine reference", ("--slots",))
    notice_idle(args, engine_rule(args), alone)
    checkpoint, tokenizer = open_model(args)
    how = Serving(slots=args.slots, any_model=True, template=args.chat_template)
    served = describe_model(args, how, checkpoint, tokenizer)
    seed = args.seed if "--seed" in args.given else answers.seed()
    answers.begin({"requests": digest(args.requests), "model": served.fingerprint, "seed": seed})
    start, finished = time.perf_counter(), False
    try:
        session = open_warm_session(args, how, checkpoint)
        served = replace(served, context=session.context)
        for line in facts(session, served, time.perf_counter() - start):
            notice(line)
        start = time.perf_counter()
        answers.open()
        batch = Batch(served=served, session=session, seed=seed)
        left = left_of(lines, answers.names())
        counts = write(answers, progress(batch.answer(left), "requests"))
        answers.finish()
        finished = True
    finally:
        if not finished:
            answers.leave(worth=True)
    report(args.out, counts, time.perf_counter() - start)
    return 0


def write(answers: AnswerFile, lines: Iterable[dict[str, Any]]) -> Counter[str]:
    """Write each line; how many there are, how many were refused or failed, and new tokens."""
    counts: Counter[str] = Counter()
    for line in lines:
        answers.add(line)
        response = line["response"]
        good = response["status_code"] == 200
        counts["answers"] += 1
        counts["refused"] += not good
        counts["tokens"] += response["body"]["usage"]["completion_tokens"] if good else 0
    return counts


def report(out: str, counts: Counter[str], seconds: float) -> None:
    """What was written, on stderr."""
    line = f"{out}: {counted(counts['answers'], 'answer')}"
    if counts["refused"]:
        line += f", of which {counts['refused']} refused or failed"
    rate = counts["tokens"] / max(seconds, 1e-9)
    print(f"{line}; {seconds:.1f} s, {rate:.1f} tokens/s", file=sys.stderr)


def digest(path: str) -> str:
    """What identifies the file of requests."""
    return hashlib.sha256(read_file(Path(path), PromptError)).hexdigest()
