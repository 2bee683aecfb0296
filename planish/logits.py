"""The logits of given tokens, float32 [T, vocab], as a .npy file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from planish.engines import add_engine_flags, add_model_flag, open_engine
from planish.given import engine_rule, notice_idle
from reference.checkpoint import open_checkpoint
from reference.errors import OutputError, PromptError
from reference.generate import Stop, check_fits


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument("--tokens", required=True, help="ids, as 1,2,3")
    parser.add_argument("--out", required=True, metavar="FILE.npy")
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> int:
    tokens, out, idle = parse_tokens(args.tokens), Path(args.out), engine_rule(args)
    if not out.parent.is_dir():
        raise OutputError("no such directory", path=out.parent)
    checkpoint = open_checkpoint(args.model)
    check_fits(checkpoint.config, [tokens], Stop(0), checkpoint.config.max_positions)
    notice_idle(args, idle)
    write_array(out, open_engine(checkpoint, args).forward(tokens))
    return 0


def parse_tokens(text: str) -> list[int]:
    """1,2,3 -> [1, 2, 3]."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        expected = "ids with commas, as 1,2,3"
        raise PromptError("bad value", name="tokens", expected=expected, found=text[:40]) from None


def write_array(out: Path, array: np.ndarray) -> None:
    """Beside the target first, then renamed: a file that is there is whole."""
    hidden = out.with_name(f".{out.name}.tmp-{os.getpid()}")
    array = np.ascontiguousarray(array, np.float32)
    try:
        with open(hidden, "wb") as file:  # np.save would not say why it cannot write
            npy.write_array_header_1_0(file, npy.header_data_from_array_1_0(array))
            file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(out)
    except OSError as problem:
        raise OutputError(f"cannot be written: {problem.strerror}", path=out) from None
    finally:
        hidden.unlink(missing_ok=True)
