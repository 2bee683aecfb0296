"""The parent's side: a peer in a child process, timed by questions.

    with PeerProcess(find_peer("llama.cpp"), MODEL_SIZES["1.1B"], "Q4_0", threads=4) as llama:
        llama.prefill(512), llama.decode(128)

The child loads its engine once and sleeps between questions. At the end of the `with` it is killed,
with every process that it started, and the files that it wrote are removed.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from planish.compare.bench.peers import Peer, PeerError, is_installed
from planish.compare.bench.sizes import ModelSize
from planish.reference.errors import notice

ROOT = Path(__file__).parents[3]  # the folder that contains compare/: the child starts there
LAST = 4096  # bytes at the end of stderr that are searched for the reason


@dataclass(frozen=True)
class Facts:
    """What a child says when it is ready."""

    version: str
    bytes: int  # of weights that one token reads
    load_seconds: float
    kernels: str = ""  # what multiplies, in the library's own words
    mode: str = ""  # the peer's fallback, if the usual way has died
    port: int = 0  # of a peer that serves


class PeerProcess:
    """A peer in a child process, with one model in one format.

    timeout: seconds to wait for any one answer, loading included. directory: where a peer that
    needs files may write them (several GB at 7B); the system's temporary directory by default.
    Raises PeerError when the child dies, fails or stalls. A child that dies of a signal before it
    is ready is replaced by one in the peer's fallback, and facts.mode says so.
    """

    facts: Facts
    compile_seconds: None = None  # peers do not report it

    def __init__(
        self,
        peer: Peer,
        sizes: ModelSize,
        form: str,
        threads: int,
        timeout: float = 1800.0,
        directory: str | Path | None = None,
    ):
        require_runnable(peer, form)
        self.peer, self.timeout, self.directory = peer, timeout, directory
        self.job = {"sizes": asdict(sizes), "format": form, "threads": threads}

    def __enter__(self) -> PeerProcess:
        with ExitStack() as stack:
            directory = stack.enter_context(make_directory(self.directory))
            self.stderr = stack.enter_context(tempfile.TemporaryFile())
            try:
                self.facts = self.load(stack, directory)
            except PeerError as problem:
                if not (self.peer.fallback and self.died_of_a_signal()):
                    raise
                notice(f"{problem}; again with {self.peer.fallback}")
                self.facts = self.load(stack, directory, self.peer.fallback)
            self.stack = stack.pop_all()
        return self

    def load(self, stack: ExitStack, directory: str, fallback: str = "") -> Facts:
        """Start a child and let it load; it ends with the stack."""
        self.child = start(self.peer, self.stderr)
        stack.callback(stop, self.child)
        ready = self.ask(self.job | {"directory": directory, "fallback": bool(fallback)})
        return Facts(
            version=ready["version"],
            bytes=ready["bytes"],
            load_seconds=ready["load_seconds"],
            kernels=ready["kernels"],
            mode=fallback,
            port=ready.get("port", 0),
        )

    def died_of_a_signal(self) -> bool:
        """Whether the child was ended so; False while it runs."""
        code = self.child.poll()
        return code is not None and code < 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stack.close()

    def prefill(self, tokens: int) -> float:
        """Seconds from a prompt to the logits after its last token; the cache is empty before."""
        return float(self.ask({"op": "prefill", "tokens": tokens})["seconds"])

    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float:
        """Seconds of `tokens` greedy steps of `batch` sequences, after `context` tokens each."""
        question = {"op": "decode", "tokens": tokens, "batch": batch, "context": context}
        return float(self.ask(question)["seconds"])

    def logits(self, pieces: list[list[list[int]]]) -> list[list[float]]:
        """Logits [batch][vocab] after pieces of tokens [batch][T], fed one after the other."""
        logits: list[list[float]] = self.ask({"op": "logits", "pieces": pieces})["logits"]
        return logits

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Write one line, read one line."""
        assert self.child.stdin is not None and self.child.stdout is not None
        with suppress(BrokenPipeError):  # a dead child is noticed when it does not answer
            self.child.stdin.write(json.dumps(question).encode() + b"\n")
            self.child.stdin.flush()
        with selectors.DefaultSelector() as waiting:  # select() is limited to 1024 descriptors
            waiting.register(self.child.stdout, selectors.EVENT_READ)
            answered = waiting.select(self.timeout)
        if not answered:
            raise PeerError("no answer", name=self.peer.name, expected=f"one in {self.timeout} s")
        line = self.child.stdout.readline()
        if not line:
            raise PeerError("its process has died", name=self.peer.name, found=self.reason())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise PeerError("failed", name=self.peer.name, found=answer["error"])
        return answer

    def reason(self) -> str:
        """The last line that a dead child wrote to stderr, or how it ended."""
        code = self.child.wait(self.timeout)
        self.stderr.seek(-min(LAST, self.stderr.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        written = [line for line in lines if line.strip()]
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{ended}: {written[-1]}" if written else ended


def require_runnable(peer: Peer, form: str) -> None:
    """Refuse a format that the peer lacks, and a peer that is not installed."""
    if form not in peer.formats:
        formats = f"one of {', '.join(peer.formats)}"
        raise PeerError("unknown format", name=peer.name, expected=formats, found=repr(form))
    if not is_installed(peer):
        raise PeerError("not installed", name=peer.name, expected=peer.install)


def make_directory(parent: str | Path | None) -> tempfile.TemporaryDirectory[str]:
    """A directory for the child's files, removed at the end; absolute, for the child's sake."""
    try:
        where = None if parent is None else Path(parent).absolute()
        return tempfile.TemporaryDirectory(prefix="planish-", dir=where)
    except OSError as problem:
        path = parent or tempfile.gettempdir()
        raise PeerError("cannot be written to", path=path, found=problem.strerror) from None


def start(peer: Peer, stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the child as the leader of a new process group, so that its children end with it."""
    return subprocess.Popen(
        [sys.executable, "-m", peer.runner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        cwd=ROOT,
        start_new_session=True,
    )


def stop(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's group; it has nothing to save."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with suppress(BrokenPipeError):
            pipe.close()
