"""Memory that is not there: one typed line from any library's words, before any work is done."""

import errno
from dataclasses import replace

import pytest

from planish.reference.engine import Engine
from planish.reference.errors import OutOfMemoryError
from planish.reference.files.load import open_checkpoint
from planish.reference.memory import memory_errors
from planish.reference.text.generate import Stop, reserve
from planish.reference.text.sampling import Sampling


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError("Unable to allocate 468. MiB for an array with shape (9,)"), " for 468 MiB"),
        (MemoryError(), ""),
        (MemoryError("std::bad_alloc"), ""),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 1073741824 bytes."), " 1024 MiB"),
        (RuntimeError("RESOURCE_EXHAUSTED: no room"), ""),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), ""),
    ],
)
def test_what_libraries_say_becomes_one_error_with_the_remedy(error, amount):
    with pytest.raises(OutOfMemoryError, match=f"^memory: is not enough.*{amount}.*less of it$"):  # noqa: SIM117
        with memory_errors("less of it"):
            raise error


@pytest.mark.parametrize(
    "error", [ValueError("allocated wrongly"), FileNotFoundError(errno.ENOENT, "x"), KeyError("x")]
)
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as found, memory_errors("less of it"):
        raise error
    assert found.value is error


@pytest.mark.parametrize("size", [2**61, 10**40])
def test_more_than_any_machine_has_cannot_be_reserved(size):
    with pytest.raises(MemoryError):
        reserve(size)


def test_a_cache_without_room_fails_before_the_first_token(tiny_llama):
    checkpoint = open_checkpoint(tiny_llama)
    endless = replace(checkpoint, config=replace(checkpoint.config, max_positions=2**60))
    engine = Engine(endless)
    with pytest.raises(OutOfMemoryError, match="fewer max_new_tokens"):
        next(engine.generate([[1]], Stop(2**55), Sampling()))
