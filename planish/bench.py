"""Tokens per second of a prompt and of decoding, beside the limits measured in the same run."""

from __future__ import annotations

import argparse
from typing import Any

from planish.engines import add_cache_flag, add_model_flag, keep_programs
from planish.output import print_json
from planish.progress import progress
from reference.checkpoint import open_checkpoint


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    parser.add_argument(
        "--peers", metavar="NAMES", help="with commas: llama.cpp, openvino, ctranslate2, pytorch"
    )
    parser.add_argument("--json", action="store_true", help="one object: rows, limits, machine")
    add_cache_flag(parser)


def run(args: argparse.Namespace) -> int:
    checkpoint = open_checkpoint(args.model)
    from compare import speed

    keep_programs(args.compilation_cache)
    names = [name.strip() for name in (args.peers or "").split(",") if name.strip()]
    result = speed.run(checkpoint, names, progress)
    if args.json:
        print_json(result)
    else:
        print(as_text(result))
    return 0


def as_text(result: dict[str, Any]) -> str:
    """A Markdown table, and under it the machine and its limits."""
    lines = ["| engine | test | tokens/s | lowest - highest | of the limit |"]
    lines += ["| --- | --- | ---: | ---: | ---: |", *map(as_line, result["rows"]), ""]
    first, machine, limits = result["rows"][0], result["machine"], result["limits"]
    lines.append(
        f"load {first['load_seconds']:.2f} s, compile {first['compile_seconds']:.2f} s;"
        f" {first['bytes_per_token']:,} bytes of weights per token"
    )
    lines.append(f"{machine['cpu']}, {machine['cores']} cores, jaxlib {machine['jaxlib']}")
    lines.append(
        f"memory {limits['memory_read_bytes_per_second'] / 1e9:.1f} GB/s; XLA's products:"
        f" float32 {limits['float32_operations_per_second'] / 1e9:.0f} GFLOP/s,"
        f" int8 {limits['int8_operations_per_second'] / 1e9:.0f} GOP/s"
    )
    return "\n".join(lines)


def as_line(row: dict[str, Any]) -> str:
    """One row; an engine that was not measured says why."""
    if row["median"] is None:
        return f"| {row['engine']} | {row['test']} | {row['note']} | | |"
    return (
        f"| {row['engine']} | {row['test']} | {row['median']:.1f} |"
        f" {row['low']:.1f} - {row['high']:.1f} |"
        f" {row['percent_of_limit']:.1f} % of {row['limited_by']} |"
    )
