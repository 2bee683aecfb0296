"""Other engines at the same sizes, measured in the same run as planish.

    __init__         which peers there are, how to install each, which formats it has
    process          the parent's side: a child process per peer, timed by questions
    child            the child's side: it builds an engine, then answers line by line
    weights          random weights that every peer and every test can recompute
    llama_cpp        llama.cpp through llama-cpp-python
    llama_cpp_server llama-cpp-python's server
    gguf_file        the file that both load
    openvino         OpenVINO's CPU plugin
    openvino_graph   the graph that it compiles
    pytorch          PyTorch, with the layers written as eager operations

Each peer runs in a separate process, because the thread pools of two runtimes in one process slow
each other down, and because a peer that dies should cost a row and not the run. A child sleeps
between questions, so that engines can be measured in turn and the machine's fast and slow minutes
affect all of them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace

from planish.reference.errors import PlanishError


class PeerError(PlanishError):
    """A peer is unknown, not installed, or has died."""


@dataclass(frozen=True)
class Peer:
    """An engine that can be measured; the measuring process imports none of its modules."""

    name: str
    module: str  # can be imported if the peer is installed
    install: str
    formats: tuple[str, ...]  # of the weights; the first is the peer's usual one
    runner: str  # the Python module that a child process runs
    fallback: str = ""  # how it is run where the usual way dies of a signal, in its words
    server: str = ""  # the Python module of a child that serves HTTP; "": it has no server


RUNNERS = "planish.compare.bench.peers"
SERVER_MODULE = "sse_starlette"  # what a peer's server needs beside the peer
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            name="llama.cpp",
            module="llama_cpp",
            install="CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python",
            formats=("Q4_0", "Q8_0"),
            runner=f"{RUNNERS}.llama_cpp",
            fallback="use_extra_bufts off",
            server=f"{RUNNERS}.llama_cpp_server",
        ),
        Peer(
            name="openvino",
            module="openvino",
            install="pip install openvino",
            formats=("int4", "int4-dynamic", "int8", "int8-dynamic"),
            runner=f"{RUNNERS}.openvino",
        ),
        Peer(
            name="torch",
            module="torch",
            install="pip install torch",
            formats=("int4", "int8", "bf16"),
            runner=f"{RUNNERS}.pytorch",
        ),
    )
}


def find_peer(name: str) -> Peer:
    """The peer of this name; raises PeerError, which lists them all."""
    if name not in PEERS:
        names = f"some of {', '.join(PEERS)}"
        raise PeerError("unknown", name="peers", expected=names, found=repr(name))
    return PEERS[name]


def find_server(name: str) -> Peer:
    """The server of the peer of this name, as a peer; PeerError for one that has none."""
    peer = find_peer(name)
    if not peer.server:
        names = f"some of {', '.join(one.name for one in PEERS.values() if one.server)}"
        raise PeerError("has no server", name="peers", expected=names, found=repr(name))
    return replace(
        peer, runner=peer.server, module=SERVER_MODULE, install=f"{peer.install}[server]"
    )


def is_installed(peer: Peer) -> bool:
    """Whether the peer's module can be found; does not import it."""
    return importlib.util.find_spec(peer.module) is not None
