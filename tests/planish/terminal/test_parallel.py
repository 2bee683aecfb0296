"""Which process this one is: from the flags, or from the variables of a launcher."""

from __future__ import annotations

from argparse import Namespace

import pytest

from planish.reference.errors import PlanishError
from planish.terminal.parallel import Parallel, parse_parallel, read_address, read_place

NONE = Namespace(coordinator=None, num_processes=None, process_id=None)


@pytest.mark.parametrize(
    "environ",
    [
        {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "SLURM_NTASKS": "9"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"},
        {"PMI_SIZE": "4", "PMI_RANK": "3"},
    ],
)
def test_a_launchers_variables_count(environ):
    assert read_place(NONE, environ) == (4, 3)


def test_flags_come_first():
    flags = Namespace(coordinator="a:1", num_processes="2", process_id="1")
    environ = {"JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3", "JAX_COORDINATOR_ADDRESS": "b:2"}
    assert read_place(flags, environ) == (2, 1)
    assert read_address(flags, environ) == "a:1"
    assert read_address(NONE, environ) == "b:2"


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:70000", "host:x"])
def test_an_address_is_a_host_and_a_port(address):
    with pytest.raises(PlanishError, match="expected HOST:PORT"):
        read_address(Namespace(coordinator=address), {})


@pytest.mark.parametrize(("count", "index"), [("0", "0"), ("2", "2"), ("two", "1"), ("2", "-1")])
def test_numbers_out_of_range_are_refused(count, index):
    with pytest.raises(PlanishError, match="bad value"):
        read_place(Namespace(num_processes=count, process_id=index), {})


def test_parallel_is_tensor_and_pipeline():
    assert parse_parallel("tensor=16") == Parallel(tensor=16)
    assert parse_parallel("pipeline=3,tensor=2") == Parallel(tensor=2, pipeline=3)
    assert parse_parallel("tensor=2,pipeline=3").processes == 6
    for text in ("16", "tensor=0", "tensor=", "layers=2", "tensor=2,tensor=2", "tensor=2,"):
        with pytest.raises(PlanishError, match="expected tensor=T, pipeline=P or"):
            parse_parallel(text)
