"""Which library multiplies INT8 for XLA, and whether it may use AMX's tiles."""

from __future__ import annotations

import platform

import pytest

from planish.fast.native.instruction_sets import cpu_features, refuse_tiles
from planish.fast.xla.products import compile_int8_product, find_library, may_use_tiles

pytestmark = pytest.mark.optimized  # numbers and programs of XLA's

FUSION = 'fusion(x, w), kind=kCustom, backend_config={"fusion_config":{"kind":"__ynn_fusion"}}'
CALL = 'custom-call(x, w), custom_call_target="__onednn$matmul"'


@pytest.mark.parametrize(
    ("program", "library"),
    [
        (FUSION, "YNNPACK"),
        (FUSION.replace("ynn", "xnn"), "XNNPACK"),
        (FUSION.replace("ynn", "new"), "__new_fusion"),
        (CALL, "oneDNN"),
        (CALL.replace("__onednn$matmul", "TopK"), "TopK"),
        ("dot(x, w), lhs_contracting_dims={1}", None),
        ('fusion(x), kind=kLoop, backend_config={"outer_dimension_partitions":[]}', None),
    ],
)
def test_the_library_is_read_from_the_program(program: str, library: str | None) -> None:
    assert find_library(program) == library


@pytest.mark.skipif(platform.machine() != "x86_64", reason="docs/kernels.md says it of x86")
def test_products_of_many_rows_go_to_ynnpack_and_those_of_a_single_output_do_not() -> None:
    assert find_library(compile_int8_product()) == "YNNPACK"
    assert find_library(compile_int8_product(outputs=1)) is None


def test_tiles_may_be_used_where_the_processor_has_them_and_the_system_has_agreed() -> None:
    compile_int8_product()
    agreed = "amx_tile" in cpu_features() and refuse_tiles() is None
    assert may_use_tiles() == agreed
