"""Answer requests over HTTP, in the form of OpenAI's API.

    planish serve --model DIR
    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Hello"}]}'

Requests are answered together, each with the same bytes as if it were alone. /health says "ok" once
all is loaded and compiled; SIGTERM and Ctrl-C end the server. What is chosen is printed at the
start, and one line for each request, without its prompt. docs/serving.md describes all of it.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planish.answering import open_exact
from planish.joining import code_of_end, column, follows, ignore_signals, leave_others
from planish.opening import open_model
from planish.reference.errors import ChatError
from planish.reference.files.load import Checkpoint
from planish.reference.text.chat import Conversation, render_chat
from planish.reference.text.chat_template import ChatTemplate, load_chat_template
from planish.reference.text.generation_config import describe_sampling, load_sampling_defaults
from planish.reference.text.requests import OneByOne, Session
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer
from planish.server.flags import add_serving_flags, settings_of
from planish.terminal.extras import require_packages
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import check_range, engine_rule, notice_idle
from planish.terminal.interrupts import interrupts_kill
from planish.terminal.output import counted
from planish.terminal.parallel import add_parallel_flags
from planish.terminal.sizes import parse_bytes

if TYPE_CHECKING:
    from planish.openai.served import Served

NEEDED = ("prometheus_client", "pydantic", "starlette", "uvicorn")
PLAIN = Sampling(temperature=1.0)  # OpenAI's defaults
NO_TEMPLATE = "has no chat template"


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    add_serving_flags(parser)
    add_engine_flags(parser)
    add_parallel_flags(parser)


def run(args: argparse.Namespace) -> int:
    require_packages("serve", NEEDED, extra="serve")
    with interrupts_kill():
        from planish.server.process import listen, serve, url_of
        from planish.server.service import Service

    settings, how = settings_of(args), serving_of(args)
    checkpoint, tokenizer = open_model(args)
    if args.context is not None:
        check_range("context", args.context, 1, checkpoint.config.max_positions)
    served = describe_model(args, how, checkpoint, tokenizer)
    notice_idle(args, engine_rule(args))
    if follows(args):
        return run_follower(args, checkpoint)
    listener = listen(args.host, args.port)
    start = time.perf_counter()

    def load() -> tuple[Session, Served]:
        session = open_warm_session(args, how, checkpoint)
        ready = replace(served, context=session.context)
        ready.warm()
        return session, ready

    def announce(session: Session, ready: Served) -> None:
        for line in facts(session, ready, time.perf_counter() - start):
            tell(line)

    tell(f"{args.model} as {served.name} at {url_of(listener)}; loading")
    if not settings.keys and not is_loopback(listener.getsockname()[0]):
        tell("no API key is set: whoever reaches this address can use the model")
    service = Service(settings=settings, open=load, tell=tell, on_ready=announce)
    code = serve(service, listener, code_of_end)
    if column() is not None:
        from planish.fast.parallel.leading import Followers

        Followers(column()).end()
        leave_others()
    return code


def run_follower(args: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """Run what process 0 serves, until it ends."""
    engine = open_exact(checkpoint, args)
    from planish.fast.parallel.leading import follow

    ignore_signals()
    follow(engine, column())
    return 0


def tell(line: str) -> None:
    """A line of the log, whole even if two threads write."""
    with LOCK:
        print(line, file=sys.stderr, flush=True)


LOCK = threading.Lock()


def is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a model is served: what requests leave out, and what a session holds.

    name        the model's id; None: that of its directory
    sampling    model: generation_config.json's defaults; none: temperature 1
    max_tokens  new tokens of a request that does not say
    template    a file instead of the model's chat template
    context     tokens of a request; None: the model's positions
    memory      bytes of keys and values; None: what the slots need
    """

    slots: int
    name: str | None = None
    any_model: bool = False
    sampling: str = "model"
    max_tokens: int = 1024
    template: str | None = None
    context: int | None = None
    memory: int | None = None
    lookup: int = 0


def serving_of(args: argparse.Namespace) -> Serving:
    """The flags of `planish serve`."""
    return Serving(
        slots=args.slots,
        name=args.name,
        any_model=args.any_model,
        sampling=args.generation_config,
        max_tokens=args.max_tokens,
        template=args.chat_template,
        context=args.context,
        memory=parse_bytes(args.cache_memory, "cache_memory"),
        lookup=args.lookup,
    )


def describe_model(
    args: argparse.Namespace, how: Serving, checkpoint: Checkpoint, tokenizer: Tokenizer
) -> Served:
    """What the protocol knows of the model; reads no weights. args: of the model and the engine."""
    from planish.openai.served import Served
    from planish.server.fingerprint import fingerprint

    defaults = None
    if how.sampling == "model":
        defaults = load_sampling_defaults(checkpoint.tokenizer_path, checkpoint.config.vocab_size)
    return Served(
        name=how.name or Path(args.model).resolve().name,
        any_model=how.any_model,
        config=checkpoint.config,
        tokenizer=tokenizer,
        template=find_template(args, how.template),
        context=checkpoint.config.max_positions,
        defaults=defaults or PLAIN,
        max_tokens=how.max_tokens,
        created=int(time.time()),
        fingerprint=fingerprint(checkpoint.path, (args.engine, args.kernels)),
    )


def find_template(args: argparse.Namespace, file: str | None) -> ChatTemplate | None:
    """The chat template of a file or the model's, tried once; None for a base model."""
    try:
        template = load_chat_template(args.model, file, args.config)
    except ChatError as problem:
        if file is None and problem.problem.startswith(NO_TEMPLATE):
            return None
        raise
    try:
        render_chat(template, Conversation(messages=[{"role": "user", "content": "Hello"}]))
    except ChatError as problem:
        if not problem.problem.startswith("refuses"):
            raise
    return template


def open_warm_session(args: argparse.Namespace, how: Serving, checkpoint: Checkpoint) -> Session:
    """Load the weights, and compile every program, so that no request waits for one."""
    engine = open_exact(checkpoint, args)
    if args.engine == "reference":
        return OneByOne(engine.config, engine.weights, how.context or 0)
    from planish.fast.parallel.leading import Followers
    from planish.fast.session.opening import open_session

    session = open_session(
        engine,
        slots=how.slots,
        context=how.context,
        memory=how.memory,
        lookup=how.lookup,
        others=None if column() is None else Followers(column()),
    )
    session.warm()
    return session


def facts(session: Session, served: Served, seconds: float) -> list[str]:
    """What was chosen, for the log."""
    size = cache_bytes(session)
    memory = f", {size / 2**20:.1f} MiB of keys and values" if size else ""
    slots = f"{counted(session.slots, 'slot')} of {session.context} tokens{memory}"
    template = "" if served.template else "; no chat template: /v1/completions only"
    return [
        f"ready after {seconds:.1f} s: {slots}{template}",
        f"default sampling: {describe_sampling(served.defaults)}",
        *(f"note: {note}" for note in session.notes),
    ]


def cache_bytes(session: Session) -> int:
    """The memory that a session keeps for keys and values; 0 if each request takes its own."""
    if session.stats().pages == 0:
        return 0
    import jax

    from planish.fast.session.batching import Batching

    assert isinstance(session, Batching)
    return sum(array.nbytes for array in jax.tree.leaves(session.model.cache))
