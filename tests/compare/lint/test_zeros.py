"""Zero points of GPTQ: versions that are mislabelled, fields that wrap, who reads them."""

import numpy as np
import pytest

from planish.compare.lint.zeros import check_range
from tests.compare.lint.conftest import FOREIGN, UP, found, linear

SEVENS, EIGHTS = 0x77777777, np.uint32(0x88888888).view(np.int32)


def fill(value, **changes):
    """Store one word everywhere, and change the quantization_config."""

    def change(tensors, config):
        for name in tensors:
            if name.endswith("qzeros"):
                tensors[name][:] = value
        config["quantization_config"] |= changes

    return change


@pytest.mark.parametrize(
    ("value", "label", "wrong"),
    [(SEVENS, "gptq", 0), (EIGHTS, "gptq", 7), (EIGHTS, "gptq_v2", 0), (SEVENS, "gptq_v2", 7)],
)
def test_symmetric_zero_points_must_be_those_of_the_label(edited, value, label, wrong):
    path = edited("gptq-v1-sym-g32", fill(value, checkpoint_format=label, format=label))
    findings = found(path, "zero-version")
    assert len(findings) == wrong
    assert all("the config says version" in one.detail for one in findings)


def test_autoround_labels_the_version_by_its_packing_format(edited):
    path = edited("autoround-sym-g32", fill(EIGHTS))
    assert len(found(path, "zero-version")) == 7
    assert found(FOREIGN / "autoround-sym-g32", "zero-version") == []


def test_stored_fifteens_of_version_1_are_counted():
    findings = found(FOREIGN / "gptq-v1-asym-g32", "zero-v1-wraps")
    assert sum(one.count for one in findings) == 7 and findings[0].detail == "15"
    assert found(FOREIGN / "gptq-v2-asym-g32", "zero-v1-wraps") == []


def test_a_fifteen_of_version_2_is_a_zero_point(edited):
    path = edited("gptq-v2-asym-g32", lambda tensors, config: tensors[f"{UP}.qzeros"].fill(-1))
    assert found(path, "zero-v1-wraps") == [] and found(path, "zero-version") == []


def test_gptqmodel_refuses_asymmetric_version_1_of_others(edited):
    def rename(tensors, config):
        config["quantization_config"]["meta"]["quantizer"] = ["gptqmodel:0.8.7"]

    assert len(found(edited("gptq-v1-asym-g32", rename), "zero-v1-asymmetric")) == 7
    assert found(FOREIGN / "gptq-v1-asym-g32", "zero-v1-asymmetric") == []


@pytest.mark.parametrize(("provider", "count"), [("auto-round", 7), ("another", 0)])
def test_autoround_has_no_zero_of_0_in_version_1(edited, provider, count):
    """The word 1 has seven fields that are 0."""

    def store(tensors, config):
        del config["quantization_config"]["meta"]
        config["quantization_config"]["provider"] = provider
        tensors[f"{UP}.qzeros"][:] = SEVENS
        tensors[f"{UP}.qzeros"][0, 0] = 1

    findings = found(edited("gptq-v1-asym-g32", store), "zero-v1-clamped")
    assert sum(one.count for one in findings if one.where == UP) == count


def test_zero_points_that_are_no_code():
    zero = np.array([[3, 16], [255, 15]], np.uint8)
    (one,) = check_range(linear(zero=lambda: zero))
    assert (one.rule, one.count, one.total, one.detail) == ("zero-range", 2, 4, "0..15")
    assert list(check_range(linear(zero=lambda: zero[:1, :1]))) == []
    assert list(check_range(linear(zero=8))) == []
