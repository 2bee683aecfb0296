"""Other engines at the same shapes, to be measured in the same run as ours.

    __init__     which peers there are, how each is installed, which formats it has
    process      the parent's side: one child process per peer, asked for seconds
    child        the child's side: it builds an engine, then answers one line with one line
    weights      random weights whose values every peer and every test can recompute
    llama_cpp    llama.cpp through llama-cpp-python, over a file written by gguf_file
    openvino     OpenVINO's CPU plugin, over a graph built by openvino_graph
    pytorch      PyTorch, the layers written out in eager operations

A peer lives in a process of its own because thread pools of two runtimes in one process disturb
each other, and because a peer that dies should cost a row and not the run. Between two questions
a child sleeps, so that engines can be measured in turns, one run of each after the other, and
the machine's good and bad minutes fall on all of them alike.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from planish.reference.errors import PlanishError


class PeerError(PlanishError):
    """A peer is unknown, not installed, or has died."""


@dataclass(frozen=True)
class Peer:
    """An engine that can be measured; nothing of it is imported by the process that measures."""

    name: str
    module: str  # found by import where the peer is installed
    install: str
    formats: tuple[str, ...]  # of the weights, the first is the peer's usual one
    runner: str  # the Python module that a child process runs
    also: tuple[str, ...] = ()  # other modules that it needs


RUNNERS = "planish.compare.bench.peers"
BUILD = "CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python gguf"
PEERS = {
    peer.name: peer
    for peer in (
        Peer("llama.cpp", "llama_cpp", BUILD, ("Q4_0", "Q8_0"), f"{RUNNERS}.llama_cpp", ("gguf",)),
        Peer(
            "openvino", "openvino", "pip install openvino", ("int4", "int8"), f"{RUNNERS}.openvino"
        ),
        Peer("torch", "torch", "pip install torch", ("int4", "int8", "bf16"), f"{RUNNERS}.pytorch"),
    )
}


def peer(name: str) -> Peer:
    """The peer of this name; raises PeerError, which names all there are."""
    if name not in PEERS:
        names = f"some of {', '.join(PEERS)}"
        raise PeerError("unknown", name="peers", expected=names, found=repr(name))
    return PEERS[name]


def installed(peer: Peer) -> bool:
    """Whether all that the peer needs can be imported, without importing it."""
    modules = (peer.module, *peer.also)
    return all(importlib.util.find_spec(module) is not None for module in modules)
