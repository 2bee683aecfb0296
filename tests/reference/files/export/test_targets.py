"""How a config names linears."""

import re

from planish.reference.files.export.targets import expression, name_targets
from planish.reference.scheme import int4, int8


def test_linears_of_all_layers_share_an_expression():
    names = [f"model.layers.{i}.mlp.{part}" for i in (0, 11) for part in ("up", "down")]
    schemes = {name: int8() if name.endswith("down") else int4() for name in names}
    assert name_targets(schemes) == {
        int4(): ["re:model[.]layers[.][0-9]+[.]mlp[.]up$"],
        int8(): ["re:model[.]layers[.][0-9]+[.]mlp[.]down$"],
    }


def test_linears_with_schemes_by_layer_are_named_one_by_one():
    schemes = {"layers.0.q": int4(), "layers.1.q": int8(), "lm_head": int8()}
    assert name_targets(schemes) == {int4(): ["layers.0.q"], int8(): ["layers.1.q", "lm_head"]}


def test_an_expression_matches_its_linears_alone():
    pattern = expression("model.layers.{i}.experts.{i}.w1").removeprefix("re:")
    assert re.match(pattern, "model.layers.3.experts.17.w1")
    for other in ("model.layers.3.experts.17.w10", "model.layers.3.expertsx17.w1"):
        assert not re.match(pattern, other)
