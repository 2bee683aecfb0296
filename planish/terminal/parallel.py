"""--parallel and the flags that say which process of how many this one is.

What a flag does not say, the environment may: that of `planish launch` and of jax, of Slurm, of
Open MPI and of other MPIs, in this order.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from planish.reference.errors import PlanishError

ADDRESS = ("JAX_COORDINATOR_ADDRESS",)
COUNT = ("JAX_NUM_PROCESSES", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
INDEX = ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
FORM = "tensor=T, pipeline=P or tensor=T,pipeline=P, for T x P processes"


def add_parallel_flags(parser: argparse.ArgumentParser) -> None:
    """--parallel, --coordinator, --num_processes, --process_id."""
    group = parser.add_argument_group("several processes (docs/scaling.md)")
    group.add_argument(
        "--parallel",
        metavar="tensor=T,pipeline=P",
        help="cut every linear in T parts, and the layers in P stages, for T x P processes, which"
        " compute the same numbers as one",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 listens for the others"
    )
    group.add_argument("--num_processes", metavar="N", help="how many processes there are")
    group.add_argument("--process_id", metavar="I", help="which of them this one is, from 0")


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a model is cut: every linear in `tensor` parts, its layers in `pipeline` stages."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def processes(self) -> int:
        return self.tensor * self.pipeline


def parse_parallel(text: str) -> Parallel:
    """tensor=2,pipeline=3; one of them is enough. Raises PlanishError for anything else."""
    pairs = [re.fullmatch(r"(tensor|pipeline)=([1-9]\d{0,4})", word) for word in text.split(",")]
    found = {pair[1]: int(pair[2]) for pair in pairs if pair is not None}
    if len(found) < len(pairs):
        raise PlanishError("bad value", name="--parallel", expected=FORM, found=text)
    return Parallel(**found)


def read_address(args: argparse.Namespace, environ: Mapping[str, str] = os.environ) -> str:
    """HOST:PORT of process 0."""
    address = args.coordinator or look_up(ADDRESS, environ)
    if address is None:
        expected = "--coordinator HOST:PORT, or planish launch --processes N -- ..."
        raise PlanishError("needs other processes", name="--parallel", expected=expected)
    if not re.fullmatch(r".+:\d{1,5}", address) or not 0 < int(address.rpartition(":")[2]) < 2**16:
        raise PlanishError("bad value", name="--coordinator", expected="HOST:PORT", found=address)
    return str(address)


def read_place(
    args: argparse.Namespace, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """How many processes there are, and which of them this one is."""
    count = read_number("--num_processes", args.num_processes or look_up(COUNT, environ), 1)
    index = read_number("--process_id", args.process_id or look_up(INDEX, environ), 0)
    if index >= count:
        expected = f"0..{count - 1}, as there are {count} processes"
        raise PlanishError("bad value", name="--process_id", expected=expected, found=index)
    return count, index


def read_number(name: str, text: str | None, least: int) -> int:
    """A flag's number, from `least` on."""
    if text is None:
        raise PlanishError("is missing", name=name, expected="with --parallel")
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) < least:
        raise PlanishError("bad value", name=name, expected=f"{least} or more", found=text)
    return int(text)


def look_up(names: tuple[str, ...], environ: Mapping[str, str]) -> str | None:
    """The first of these variables that is set."""
    return next((environ[name] for name in names if name in environ), None)
