"""The flags of --chat: each prompt is a user's message, written into the model's chat template."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from planish.reference.errors import PromptError
from planish.reference.text.chat import Conversation, Message, encode_chat
from planish.reference.text.chat_template import load_chat_template
from planish.reference.text.tokenizer import Tokenizer
from planish.terminal.given import refuse_given

NEEDS_CHAT = ("--system", "--chat_template")


def add_chat_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat",
        action="store_true",
        help="each prompt is a user's message: write it into the model's chat template",
    )
    parser.add_argument(
        "--system", metavar="TEXT", help="the system message of --chat (default: the template's)"
    )
    parser.add_argument(
        "--chat_template",
        metavar="FILE",
        help="a template in jinja2 instead of the model's, for --chat",
    )


def chat_prompts(
    args: argparse.Namespace, tokenizer: Tokenizer, texts: Sequence[str]
) -> list[list[int]]:
    """Token ids of a conversation of one turn for each text.

    Raises ChatError if the model has no template or the template cannot render the turn.
    """
    if not texts:
        raise PromptError("is missing", name="prompt", expected="a message, with --chat")
    template = load_chat_template(args.model, args.chat_template, args.config)
    system: list[Message] = [] if args.system is None else [message("system", args.system)]
    turns = [[*system, message("user", text)] for text in texts]
    return [encode_chat(tokenizer, template, Conversation(messages=turn)) for turn in turns]


def message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def refuse_chat_flags(args: argparse.Namespace) -> None:
    """Refuse the flags of --chat without it."""
    if not args.chat:
        refuse_given(args, NEEDS_CHAT, "is for --chat")
