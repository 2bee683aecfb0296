"""g_idx: missing, trivial, undeclared, out of range."""

import numpy as np
import pytest

from tests.compare.lint.conftest import FOREIGN, LAYER, UP, found


def test_a_trivial_g_idx_is_a_note():
    assert len(found(FOREIGN / "gptq-v1-sym-g32", "order-trivial")) == 7
    assert found(FOREIGN / "gptq-v1-sym-g32-desc_act", "order-trivial") == []


def test_act_order_that_is_declared_and_stored_is_sound():
    assert found(FOREIGN / "gptq-v1-sym-g32-desc_act", "order-undeclared") == []


@pytest.mark.parametrize(("dynamic", "wrong"), [({}, 7), ({"+:.*": {"desc_act": True}}, 0)])
def test_act_order_must_be_declared_for_all_linears_or_for_some(edited, dynamic, wrong):
    def hide(tensors, config):
        config["quantization_config"] |= {"desc_act": False, "dynamic": dynamic}

    assert len(found(edited("gptq-v1-sym-g32-desc_act", hide), "order-undeclared")) == wrong


def test_a_declared_act_order_that_changes_nothing_is_said(edited):
    def declare(tensors, config):
        config["quantization_config"]["desc_act"] = True

    findings = found(edited("gptq-v1-sym-g32", declare), "order-trivial")
    assert findings[0].detail == ", although desc_act is declared"


def test_a_missing_g_idx_is_a_warning_under_gptqs_config_only(edited):
    path = edited("gptq-v1-sym-g32", lambda tensors, config: tensors.pop(f"{UP}.g_idx"))
    assert [one.where for one in found(path, "order-missing")] == [UP]
    assert found(FOREIGN / "autoround-sym-g32", "order-missing") == []


def test_entries_that_are_no_group(edited):
    def spoil(tensors, config):
        tensors[f"{UP}.g_idx"][:3] = [4, -5, -4]  # of groups -4..3

    (one,) = found(edited("gptq-v1-sym-g32", spoil), "order-range")
    assert (one.where, one.count, one.total) == (UP, 2, 128)


def test_g_idx_of_compressed_tensors(edited):
    name = f"{LAYER}.self_attn.q_proj"

    def add(tensors, config):
        tensors[f"{name}.weight_g_idx"] = (np.arange(128) // 32).astype(np.int32)

    path = edited("ct-w4a16-g32", add)
    assert [one.where for one in found(path, "order-compressed-tensors")] == [name]
    assert found(FOREIGN / "ct-w4a16-g32", "order-compressed-tensors") == []
