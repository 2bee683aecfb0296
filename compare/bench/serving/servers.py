"""The servers of a run, each in its own process: planish serve, and those of peers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from planish.compare.bench.engines import count_bits, find_usual_bits
from planish.compare.bench.machine import count_threads
from planish.compare.bench.peers import PeerError, find_peer, find_server, is_installed
from planish.compare.bench.peers.process import PeerProcess
from planish.compare.bench.serving.client import ServingError
from planish.compare.bench.serving.crowd import Asked, draw_ids, draw_letters
from planish.compare.bench.sizes import ModelSize
from planish.reference.files.load import Checkpoint

SEED = 0  # of the prompts
ADDRESS = re.compile(r" at http://127\.0\.0\.1:(\d+)")
READY = "ready after"
PATIENCE = 30.0  # seconds for a server to end


@dataclass(frozen=True, kw_only=True)
class MeasuredServer:
    """One server with one model, ready to be asked."""

    name: str
    format: str
    bits: int
    asked: Asked
    is_planish: bool
    version: str = ""
    mode: str = ""  # of a peer that does not run in its usual way


@contextmanager
def serve_planish(
    checkpoint: Checkpoint, form: str, words: Sequence[str]
) -> Iterator[MeasuredServer]:
    """planish serve on a checkpoint, until the end of the `with`. words: further flags."""
    command = [sys.executable, "-m", "planish", "serve", "--model", str(checkpoint.path)]
    command += ["--port", "0", "--name", "measured", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as child:
        try:
            assert child.stderr is not None
            port = read_port(child.stderr)
            threading.Thread(target=child.stderr.read, daemon=True).start()  # never full
            yield MeasuredServer(
                name="planish",
                format=form,
                bits=find_usual_bits(checkpoint),
                asked=ask_planish(port, checkpoint.config.vocab_size),
                is_planish=True,
            )
        finally:
            end(child)


def ask_planish(port: int, vocab: int) -> Asked:
    """Prompts of ids; every answer as long as it was asked to be."""
    fields = {"ignore_eos": True, "stream_options": {"include_usage": True}}
    draw = draw_ids(np.random.default_rng(SEED), vocab)
    return Asked(address=("127.0.0.1", port), draw=draw, fields=fields)


def read_port(stderr: IO[str]) -> int:
    """The port of a server that has become ready; ServingError if it ends instead."""
    port, lines = 0, list[str]()
    for line in stderr:
        lines.append(line.strip())
        found = ADDRESS.search(line)
        port = int(found[1]) if found else port
        if line.startswith(READY):
            return port
    raise ServingError("does not start", name="planish serve", found=(lines or [""])[-1])


def end(child: subprocess.Popen[str]) -> None:
    """Ask a server to end; kill it if it does not."""
    child.terminate()
    try:
        child.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        child.kill()


def serve_peers(
    stack: ExitStack, names: Sequence[str], size: ModelSize, bits: set[int], directory: Path | None
) -> tuple[list[MeasuredServer], list[str]]:
    """Start every peer's server in each format that has one of these bits per weight.

    Also returns a line for each peer that is not installed or does not start."""
    found, missing = list[MeasuredServer](), []
    for peer in map(find_server, names):
        if not (is_installed(find_peer(peer.name)) and is_installed(peer)):
            missing.append(f"{peer.name}: its server is not installed ({peer.install})")
            continue
        for form in (form for form in peer.formats if count_bits(form) in bits):
            process = PeerProcess(peer, size, form, count_threads(), directory=directory)
            try:
                facts = stack.enter_context(process).facts
            except PeerError as problem:
                missing.append(f"{form} of {problem}")
                continue
            letters = draw_letters(np.random.default_rng(SEED))
            found.append(
                MeasuredServer(
                    name=peer.name,
                    format=form,
                    bits=count_bits(form),
                    asked=Asked(address=("127.0.0.1", facts.port), draw=letters, fields={}),
                    is_planish=False,
                    version=facts.version,
                    mode=facts.mode,
                )
            )
    return found, missing
