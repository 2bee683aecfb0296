"""llama-cpp-python's server, in a child process that ends with its parent's wish.

It answers one request after another, whatever comes: the others wait for a lock. Three of its
settings are changed: by default a second request ends the first (interrupt_requests), logits are
computed for all tokens of a prompt (logits_all), and attention is the slower one. The fallback is
that of llama_cpp.py.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp
import uvicorn
from llama_cpp.server import app as server
from llama_cpp.server.settings import ModelSettings, ServerSettings

from planish.compare.bench.peers import gguf_file
from planish.compare.bench.peers.child import TRIAL, Job, one_line, send, take_stdout
from planish.compare.bench.peers.llama_cpp import REPACKED, find_features
from planish.compare.bench.peers.weights import count_linear_bytes

CONTEXT = 2048
BATCH = 512  # tokens of a prompt that one call computes


def main() -> None:
    """Read the job, say "ready" with the port, and serve until the parent kills this process."""
    pipe, start = take_stdout(), time.perf_counter()
    job = Job.parse(sys.stdin.readline())
    try:
        app = make_app(job)
        listener = socket.create_server(("127.0.0.1", 0))
        seconds = time.perf_counter() - start
        facts = describe(job) | {"load_seconds": seconds, "port": listener.getsockname()[1]}
    except Exception as problem:
        send(pipe, {"error": one_line(problem)})
        return
    send(pipe, {"ready": True, **facts})
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


def make_app(job: Job) -> Any:
    """The application, after a trial that dies where the build's instructions are refused."""
    path = Path(job.directory, "model.gguf")
    gguf_file.write(path, job.sizes, job.format, gguf_file.word_vocabulary(job.sizes.vocab))
    if job.fallback:
        use_no_extra_buffers()
    model = ModelSettings(
        model=str(path),
        n_ctx=CONTEXT,
        n_batch=BATCH,
        n_threads=job.threads,
        n_threads_batch=job.threads,
        flash_attn=True,
        logits_all=False,
        verbose=False,
    )
    settings = ServerSettings(interrupt_requests=False)
    app = server.create_app(server_settings=settings, model_settings=[model])
    server._llama_proxy(None).create_completion("a" * TRIAL, max_tokens=1)
    return app


def use_no_extra_buffers() -> None:
    """Load without repacked weights: the library has no setting for it."""
    default = llama_cpp.llama_cpp.llama_model_default_params

    def without() -> Any:
        parameters = default()
        parameters.use_extra_bufts = False
        return parameters

    llama_cpp.llama_cpp.llama_model_default_params = without


def describe(job: Job) -> dict[str, Any]:
    """The version, the size and the kernels."""
    features = find_features(llama_cpp.llama_print_system_info().decode())
    unused = REPACKED if job.fallback else set[str]()
    return {
        "version": f"llama-cpp-python {llama_cpp.__version__}",
        "bytes": count_linear_bytes(job.sizes, gguf_file.block_bits(job.format)),
        "kernels": " ".join(name for name in features if name not in unused),
    }


if __name__ == "__main__":
    main()
