"""OpenVINO's CPU plugin, with the KV cache as the model's state."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov

from planish.compare.bench.peers import openvino_graph
from planish.compare.bench.peers.child import Job, serve
from planish.compare.bench.peers.weights import count_linear_bytes


class OpenVino:
    """A compiled model and one request, which holds the caches."""

    def __init__(self, job: Job):
        graph = openvino_graph.Graph(job.sizes, job.format)
        model = ov.Core().compile_model(graph.build(), "CPU", choose_settings(job))
        self.request = model.create_infer_request()
        self.version = f"openvino {ov.__version__.split('-')[0]}"
        bits = openvino_graph.BITS_PER_WEIGHT[job.format]
        self.weight_bytes = count_linear_bytes(job.sizes, bits)

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
            "mask": causal_mask(positions, self.length),
        }
        outputs = self.request.infer(inputs, share_inputs=True, share_outputs=True)
        logits: np.ndarray = outputs[0][:, -1]  # [B, V]
        return logits


def causal_mask(positions: np.ndarray, length: int) -> np.ndarray:
    """[1, 1, T, S], to be added to the scores."""
    seen = np.arange(length) <= positions[:, None]
    return np.where(seen, np.float32(0), np.finfo(np.float32).min)[None, None]


def choose_settings(job: Job) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": "bf16",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 128,
    }


if __name__ == "__main__":
    serve(OpenVino)
