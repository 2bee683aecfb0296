"""GLM-4-0414: GLM with norms before and after attention and MLP.

Source: transformers' modeling_glm4.
"""

from __future__ import annotations

from planish.reference.architectures import glm
from planish.reference.architectures.entry import Architecture
from planish.reference.architectures.read.decoder import LAYER, TENSORS
from planish.reference.architectures.read.keys import Keys
from planish.reference.model.config import ModelConfig


def config(keys: Keys) -> ModelConfig:
    return glm.config(keys, model_type="glm4", norm_placement="sandwich")


GLM4 = Architecture(
    model_type="glm4",
    config=config,
    tensors=TENSORS,
    block=glm.BLOCK
    | {
        "attention_output_norm": LAYER + "post_self_attn_layernorm",
        "mlp_output_norm": LAYER + "post_mlp_layernorm",
    },
    examples=("zai-org/GLM-4-9B-0414", "zai-org/GLM-4-32B-0414"),
)
