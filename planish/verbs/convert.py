"""Write a model in another format: its codes and scales as they are, or all in floats.

Reads what every verb reads: planish's directories, those of other programs, GGUF files. What a
format cannot hold is refused, with the nearest format that can.
"""

from __future__ import annotations

import argparse
import sys
import time

from planish.exporting import PROGRAM
from planish.opening import open_given
from planish.reference.errors import one_line
from planish.reference.files.export.convert import EXPORTS, check_request, convert
from planish.reference.files.export.dtypes import DTYPES
from planish.reference.files.export.protocol import Request
from planish.terminal.flags import add_links_flag
from planish.terminal.given import notice_idle
from planish.terminal.progress import progress


def add_flags(parser: argparse.ArgumentParser) -> None:
    words = "a Hugging Face directory of any format that planish reads, or a GGUF file"
    parser.add_argument("--model", required=True, metavar="DIR", help=words)
    parser.add_argument(
        "--out", required=True, metavar="OUT", help="the directory or file to write"
    )
    words = f"{', '.join(EXPORTS)}: the last dequantizes"
    parser.add_argument("--format", required=True, metavar="FORMAT", help=words)
    words = f"of float tensors: {', '.join(DTYPES)} (default: as they are)"
    parser.add_argument("--dtype", metavar="DTYPE", help=words)
    words = "planish: tiles (default, where all codes have them), for the kernels, or canonical"
    parser.add_argument("--layout", metavar="LAYOUT", help=words)
    words = "replace a model that exists at --out"
    parser.add_argument("--overwrite", action="store_true", help=words)
    add_links_flag(parser)


def run(args: argparse.Namespace) -> int:
    request = Request(
        format=args.format,
        dtype=args.dtype,
        layout=args.layout,
        overwrite=args.overwrite,
        program=PROGRAM,
        progress=progress,
    )
    check_request(request)
    start = time.perf_counter()
    checkpoint = open_given(args)
    notice_idle(args)
    convert(checkpoint, args.out, request)
    seconds = time.perf_counter() - start
    print(f"{one_line(args.out)}: {args.format}, {seconds:.1f} s", file=sys.stderr)
    return 0
