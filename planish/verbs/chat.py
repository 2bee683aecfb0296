"""Talk with a model that has a chat template.

Messages are typed in a terminal; /help lists the commands. Without a terminal each line of stdin is
a message. --prompt asks once. Answers go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from planish.answering import open_answering
from planish.dialogue.answers import Speaker
from planish.dialogue.commands import COMMANDS
from planish.dialogue.history import history_file
from planish.dialogue.loop import Loop, tell
from planish.dialogue.messages import Messages
from planish.dialogue.settings import Settings
from planish.dialogue.talk import Talk
from planish.dialogue.typing import Reader, Typed, edited_reader, piped_reader, plain_reader
from planish.opening import open_model
from planish.reference.errors import ChatError, PlanishError, PromptError, notice
from planish.reference.files.load import Checkpoint
from planish.reference.text.chat_template import load_chat_template
from planish.reference.text.generation_config import describe_sampling, load_sampling_defaults
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import read_text
from planish.terminal.flags import add_engine_flags, add_model_flag
from planish.terminal.given import engine_rule, notice_idle
from planish.terminal.sampling import add_sampling_flags, sampling_of

CONTEXT, NEW_TOKENS = 8192, 1024  # the defaults; a context takes memory from the start
SOURCES = ("model", "none")
WITHOUT_PROMPT_TOOLKIT = (
    "prompt_toolkit is missing: single lines only, no history;"
    ' pip install "planish[chat]" brings it'
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    add_model_flag(parser)
    add_conversation_flags(parser)
    add_sampling_flags(parser, "the model's")
    parser.add_argument(
        "--generation_config",
        choices=SOURCES,
        default="model",
        help="model (default): what generation_config.json says is the default of the flags above;"
        " none: as if it said nothing",
    )
    parser.add_argument(
        "--max_new_tokens",
        type=int,
        default=NEW_TOKENS,
        metavar="N",
        help=f"the most tokens of an answer (default: {NEW_TOKENS})",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a string that ends an answer and is not shown; may be given several times",
    )
    parser.add_argument(
        "--no_history", action="store_true", help="keep no typed line for the next time"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="say after each answer how fast it was"
    )
    add_engine_flags(parser)


def add_conversation_flags(parser: argparse.ArgumentParser) -> None:
    """What the conversation is."""
    parser.add_argument("--prompt", metavar="TEXT", help="ask this and end")
    parser.add_argument(
        "--system", metavar="TEXT", help="the system message (default: the template's)"
    )
    parser.add_argument("--system_file", metavar="FILE", help="the same from a file")
    parser.add_argument(
        "--chat_template", metavar="FILE", help="a template in jinja2 instead of the model's"
    )
    parser.add_argument(
        "--template_args",
        metavar="JSON",
        help='more that the template reads, as {"enable_thinking": false}',
    )
    parser.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="positions of the conversation and its next answer (default: the model's, at most"
        f" {CONTEXT})",
    )


def run(args: argparse.Namespace) -> int:
    if args.prompt is not None and not args.prompt.strip():
        raise PromptError("is empty", name="prompt", expected="a message")
    system, variables = system_message(args), template_variables(args)
    checkpoint, tokenizer = open_model(args)
    template = load_chat_template(args.model, args.chat_template, args.config)
    settings = settings_of(args, checkpoint)
    context = context_of(args, checkpoint)
    notice_idle(args, engine_rule(args))
    _, session = open_answering(checkpoint, args, context)
    speaker = Speaker(
        session=session,
        tokenizer=tokenizer,
        template=template,
        config=checkpoint.config,
        context=context,
        variables=variables,
    )
    talk = Talk(speaker=speaker, settings=settings, show=show, messages=Messages(system=system))
    introduce(args, talk)
    converse(args, talk)
    return 0


def converse(args: argparse.Namespace, talk: Talk) -> None:
    """One turn with --prompt; otherwise until the end of input."""
    if args.prompt is not None:
        once = Loop(talk=talk, reader=piped_reader(), interactive=False)
        once.respond(Typed(args.prompt, in_quotes=True))
        return
    interactive = sys.stdin.isatty()
    reader = choose_reader(args) if interactive else piped_reader()
    Loop(talk=talk, reader=reader, interactive=interactive).run()


def choose_reader(args: argparse.Namespace) -> Reader:
    """A reader for a terminal: prompt_toolkit's if it is installed."""
    try:
        import prompt_toolkit  # noqa: F401
    except ImportError:
        notice(WITHOUT_PROMPT_TOOLKIT)
        return plain_reader()
    return edited_reader(None if args.no_history else history_file(), list(COMMANDS))


def introduce(args: argparse.Namespace, talk: Talk) -> None:
    """Say how answers are sampled, which a model's file may decide; in a terminal also the keys."""
    if sys.stdin.isatty() and args.prompt is None:
        where = f"{args.model}, context of {talk.speaker.context} tokens"
        tell(f"{where}; /help lists the commands, Ctrl-D leaves")
    tell(f"sampling: {describe_sampling(talk.settings.sampling)}")


def show(piece: str) -> None:
    """Print a piece of an answer; a terminal gets no control characters from a model."""
    text = visible(piece) if sys.stdout.isatty() else piece
    print(text, end="", flush=True)


def visible(text: str) -> str:
    """The text with control characters, which could move the cursor or worse, made visible."""
    return "".join(c if c in "\n\t" or not is_control(c) else f"\\x{ord(c):02x}" for c in text)


def is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def settings_of(args: argparse.Namespace, checkpoint: Checkpoint) -> Settings:
    """From the flags, with the model's own defaults unless --generation_config none."""
    config, defaults = checkpoint.config, None
    if args.generation_config == "model":
        defaults = load_sampling_defaults(checkpoint.tokenizer_path, config.vocab_size)
    settings = Settings(
        sampling=sampling_of(args, defaults or Sampling()),
        seed=args.seed,
        max_new_tokens=args.max_new_tokens,
        stop=tuple(args.stop),
        verbose=args.verbose,
    )
    settings.check(config.vocab_size)
    return settings


def system_message(args: argparse.Namespace) -> str | None:
    if args.system is not None and args.system_file is not None:
        raise PlanishError("is given, and --system, too", name="--system_file", expected="one")
    return args.system if args.system_file is None else read_text(args.system_file).rstrip("\n")


def template_variables(args: argparse.Namespace) -> dict[str, Any]:
    """The object of --template_args."""
    text, name = args.template_args, "--template_args"
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ChatError(f"is not JSON: {problem}", name=name) from None
    if not isinstance(value, dict):
        found = type(value).__name__
        raise ChatError("wrong form", name=name, expected="a JSON object", found=found)
    return value


def context_of(args: argparse.Namespace, checkpoint: Checkpoint) -> int:
    """--context, within the model's positions."""
    most = checkpoint.config.max_positions
    if args.context is None:
        return min(most, CONTEXT)
    if not 1 <= args.context <= most:
        expected = f"1..{most}, the model's positions"
        raise PlanishError("bad value", name="context", expected=expected, found=args.context)
    context: int = args.context
    return context
