"""OpenVINO's CPU plugin, with the KV cache as the model's state.

As it comes, with the settings that it chooses itself (formats int4 and int8), and with dynamic
quantization of activations (int4-dynamic, int8-dynamic). As it comes, a processor with AMX
multiplies in bfloat16. Dynamic quantization has two forms:

    whole rows   LLMMLP and QKVProjection, fused kernels of AMX's INT8 products. They take signed
                 INT8 weights only, and groups no narrower than the widest layer's inputs. LLMMLP
                 needs two threads (it divides by half of them), QKVProjection a number that is
                 about a multiple of 3. lm_head, the output projection and INT4 stay in bfloat16.
    groups       FullyConnected on processors without AMX, fastest here with 128 inputs in a group

`describe_products` says which kernels were used, as the plugin reports them.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import openvino as ov

from planish.compare.bench.peers import openvino_graph
from planish.compare.bench.peers.child import Job, serve
from planish.compare.bench.peers.weights import count_linear_bytes
from planish.fast.native.instruction_sets import cpu_features

PRODUCTS = ("FullyConnected", "LLMMLP", "QKVProjection")
WHOLE_ROWS, GROUP = 2**16, 128  # inputs that share a scale; 2**16 is beyond the widest layer


class OpenVino:
    """A compiled model and one request, which holds the caches."""

    def __init__(self, job: Job):
        form, _, mode = job.format.partition("-")
        graph = openvino_graph.Graph(job.sizes, form)
        settings = choose_settings(job.threads) | (quantize_rows(form, job.threads) if mode else {})
        self.model = ov.Core().compile_model(graph.build(), "CPU", settings)
        self.request = self.model.create_infer_request()
        self.version = f"openvino {ov.__version__.split('-')[0]}"
        self.weight_bytes = count_linear_bytes(job.sizes, openvino_graph.BITS_PER_WEIGHT[form])

    @property
    def kernels(self) -> str:
        return describe_products(self.model)

    def reset(self, batch: int, length: int) -> None:  # noqa: ARG002  the state grows as it must
        self.request.reset_state()
        self.beam, self.length = np.arange(batch, dtype=np.int32), 0

    def forward(self, tokens: np.ndarray) -> np.ndarray:
        batch, width = tokens.shape
        positions = np.arange(self.length, self.length + width, dtype=np.int64)
        self.length += width
        inputs = {
            "tokens": np.ascontiguousarray(tokens, np.int64),
            "positions": np.tile(positions, (batch, 1)),
            "beam": self.beam,
            "mask": causal_mask(positions, self.length, batch),
        }
        outputs = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        logits: np.ndarray = outputs[0][:, -1]  # [B, V]
        return logits


def causal_mask(positions: np.ndarray, length: int, batch: int) -> np.ndarray:
    """[B, 1, T, S], to be added to the scores; fused attention does not broadcast over B."""
    seen = np.arange(length) <= positions[:, None]
    mask = np.where(seen, np.float32(0), np.finfo(np.float32).min)
    return np.tile(mask, (batch, 1, 1, 1))


def choose_settings(threads: int) -> dict[str, Any]:
    """One stream of all threads; everything else as it comes."""
    return {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}


def quantize_rows(form: str, threads: int) -> dict[str, Any]:
    """Dynamic quantization in the groups that this processor's INT8 kernels take."""
    whole = form == "int8" and threads > 1 and "amx_int8" in cpu_features()
    return {"DYNAMIC_QUANTIZATION_GROUP_SIZE": WHOLE_ROWS if whole else GROUP}


def describe_products(model: ov.CompiledModel) -> str:
    """The kernels of the last inference, as "22 LLMMLP of i8, 66 FullyConnected by brgemm_...".

    A fused node is named by its weights' type, for the plugin's name of its kernel says only that
    its input is bfloat16; a FullyConnected by its kernel, whose name has the type that it
    multiplies in. (The plugin's runtimePrecision of a FullyConnected is its weights' type, before
    they are decompressed.)
    """
    kinds = Counter[str]()
    for node in model.get_runtime_model().get_ordered_ops():
        kind = read_fact(node, "layerType")
        if kind == "FullyConnected":
            kinds[f"{kind} by {read_fact(node, 'primitiveType')}"] += 1
        elif kind in PRODUCTS:
            weight = node.input_value(1).get_node()
            kinds[f"{kind} of {read_fact(weight, 'outputPrecisions')}"] += 1
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def read_fact(node: ov.Node, name: str) -> str:
    """What the plugin says of a node that it runs."""
    return str(node.get_rt_info()[name].astype(str))


if __name__ == "__main__":
    serve(OpenVino)
