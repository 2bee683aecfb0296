"""The logits of given tokens, float32 [T, vocab], as a .npy file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from planish.joining import is_writer
from planish.opening import open_engine, open_subject
from planish.reference.errors import PromptError, SamplingError, one_line
from planish.reference.files.placing import check_file, write_file
from planish.reference.text.generate import Stop, check_fits
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import engine_rule, notice_idle
from planish.terminal.parallel import add_parallel_flags


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument(
        "--tokens", required=True, metavar="IDS", help="token ids, separated by commas: 1,2,3"
    )
    parser.add_argument(
        "--out",
        required=True,
        metavar="FILE.npy",
        help="the file to write; an existing one is replaced",
    )
    add_engine_flags(parser)
    add_parallel_flags(parser)


def run(args: argparse.Namespace) -> int:
    tokens, out, idle = parse_tokens(args.tokens), Path(args.out), engine_rule(args)
    check_file(out)
    checkpoint = open_subject(args)
    check_fits(checkpoint.config, [tokens], Stop(0), checkpoint.config.max_positions)
    notice_idle(args, idle)
    logits = open_engine(checkpoint, args).forward(tokens)
    check_numbers(logits)
    if is_writer():
        write_array(out, logits)
    print(f"{one_line(args.out)}: float32 {list(logits.shape)}", file=sys.stderr)
    return 0


def parse_tokens(text: str) -> list[int]:
    """1,2,3 -> [1, 2, 3]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        expected = "ids separated by commas, as 1,2,3"
        raise PromptError("bad value", name="tokens", expected=expected, found=text[:40]) from None


def check_numbers(logits: np.ndarray) -> None:
    """Raise SamplingError for NaN and Inf; -Inf is allowed, as it excludes a token."""
    bad = np.isnan(logits) | (logits == np.inf) | np.isneginf(logits).all(axis=-1, keepdims=True)
    if bad.any():
        row, token = np.argwhere(bad)[0]
        found = f"{logits[row, token]} at position {row}, token {token}"
        raise SamplingError("nothing is written", name="logits", expected="numbers", found=found)


def write_array(out: Path, array: np.ndarray) -> None:
    """Write as np.save does, but with an error that says why it failed."""
    array = np.ascontiguousarray(array, np.float32)
    with write_file(out) as file:
        npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
        file.write(array.data)
