"""What a line that begins with / does."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from planish.dialogue.answers import Answer, CtrlC
from planish.dialogue.saved import load_messages, save_messages
from planish.dialogue.talk import Talk
from planish.reference.errors import PromptError, suggest
from planish.terminal.output import counted

OVERWRITE = "--overwrite"
NONE = "none"
KEYS = (
    ("Enter", "sends the message"),
    ("Alt-Enter", "begins a new line; so does Enter after three quotes, up to the next three"),
    ("Ctrl-C", "stops an answer and keeps what came; twice, it leaves"),
    ("Ctrl-D", "leaves"),
    ("//...", "is a message that begins with /"),
)

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One use of a command: the words after its name, and what it may need."""

    talk: Talk
    rest: str
    tell: Tell
    noted: CtrlC


class Leave(Exception):  # noqa: N818  (no error)
    """/quit"""


def show_help(call: Call) -> None:
    width = max(len(command.usage) for command in COMMANDS.values()) + 2
    lines = [f"{command.usage:<{width}}{command.does}" for command in COMMANDS.values()]
    lines += [f"{key:<{width}}{does}" for key, does in KEYS]
    call.tell("\n".join(lines))


def reset(call: Call) -> Answer | None:
    """Begin anew; a message that found no room is answered now."""
    pending, call.talk.messages.turns = call.talk.pending, []
    call.tell("the conversation is empty")
    call.talk.pending = None
    return None if pending is None else call.talk.ask(pending, call.noted)


def drop(call: Call) -> Answer | None:
    no_words(call, "/drop")

    def tell(count: int) -> None:
        words = f"dropped the oldest {counted(count, 'message')}"
        call.tell(words if count else "nothing is dropped: only the last turn is left")

    return call.talk.make_room(call.noted, tell)


def system(call: Call) -> None:
    messages = call.talk.messages
    if call.rest == NONE:
        messages.system = None
        call.tell("no system message")
    elif call.rest:
        messages.system = call.rest
        call.tell("the system message is set")
    else:
        call.tell(f"system: {messages.system}" if messages.system else "no system message")


def regenerate(call: Call) -> Answer:
    no_words(call, "/regenerate")
    return call.talk.regenerate(call.noted)


def undo(call: Call) -> None:
    no_words(call, "/undo")
    removed = call.talk.messages.undo()
    call.talk.pending = None
    call.tell(f"removed the last {counted(len(removed), 'message')}" if removed else NOTHING)


NOTHING = "the conversation is empty"


def save(call: Call) -> None:
    words = words_of(call.rest)
    overwrite = OVERWRITE in words
    path = one_path([word for word in words if word != OVERWRITE], "/save")
    messages = call.talk.messages.all()
    save_messages(messages, path, overwrite)
    call.tell(f"{path}: {counted(len(messages), 'message')}")


def load(call: Call) -> None:
    path = one_path(words_of(call.rest), "/load")
    loaded = load_messages(path)
    before, call.talk.messages = call.talk.messages, loaded
    call.talk.pending = None
    replaced = f", in place of {len(before.all())}" if before.turns else ""
    call.tell(f"{path}: {counted(len(loaded.all()), 'message')}{replaced}")
    if loaded.last_role == "user":
        call.tell("/regenerate answers the last one")


def tokens(call: Call) -> None:
    no_words(call, "/tokens")
    count, context = call.talk.count(), call.talk.speaker.context
    call.tell(f"{counted(count, 'token')} of {context}")


def set_value(call: Call) -> None:
    name, _, value = call.rest.partition(" ")
    settings = call.talk.settings
    if name and value.strip():
        vocab_size = call.talk.speaker.config.vocab_size
        call.talk.settings = settings.changed(name, value.strip(), vocab_size)
    values = call.talk.settings.values()
    if name and name not in values:
        settings.changed(name, "", 1)  # says which names there are
    shown = {name: values[name]} if name else values
    call.tell("\n".join(f"{key} {value}" for key, value in shown.items()))


def leave(_: Call) -> None:
    raise Leave


@dataclass(frozen=True, kw_only=True)
class Command:
    """usage: with its words; run: does it, and returns the answer if it is one."""

    usage: str
    does: str
    run: Callable[[Call], Answer | None]


COMMANDS = {
    "/help": Command(usage="/help", does="shows this", run=show_help),
    "/reset": Command(usage="/reset", does="begins a new conversation", run=reset),
    "/system": Command(
        usage="/system [TEXT]",
        does=f"shows or sets the system message; {NONE}: without",
        run=system,
    ),
    "/regenerate": Command(
        usage="/regenerate", does="answers the last message again, with other draws", run=regenerate
    ),
    "/undo": Command(usage="/undo", does="removes the last message and its answer", run=undo),
    "/drop": Command(
        usage="/drop",
        does="removes the oldest message and its answer, or what is too long",
        run=drop,
    ),
    "/save": Command(
        usage="/save FILE",
        does=f"writes the conversation as JSON ({OVERWRITE}: also over a file)",
        run=save,
    ),
    "/load": Command(usage="/load FILE", does="reads such a conversation", run=load),
    "/tokens": Command(usage="/tokens", does="shows how long the conversation is", run=tokens),
    "/set": Command(
        usage="/set [NAME VALUE]", does="shows the settings, or changes one", run=set_value
    ),
    "/quit": Command(usage="/quit", does="leaves", run=leave),
}


def run_command(line: str, talk: Talk, tell: Tell, noted: CtrlC) -> Answer | None:
    """Run a line that begins with one /; PromptError for an unknown command."""
    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        expected = f"one of {', '.join(COMMANDS)}; //... is a message that begins with /"
        raise PromptError(f"unknown command{suggest(name, COMMANDS)}", name=name, expected=expected)
    return COMMANDS[name].run(Call(talk=talk, rest=rest.strip(), tell=tell, noted=noted))


def words_of(text: str) -> list[str]:
    """The words of a line; quotes join them as in a shell."""
    try:
        return shlex.split(text)
    except ValueError:  # a quote without its end
        return [text]


def one_path(words: list[str], name: str) -> Path:
    if len(words) != 1:
        raise PromptError("needs one file", name=name, expected=COMMANDS[name].usage)
    return Path(os.path.expanduser(words[0]))  # noqa: PTH111  (Path's raises without a home)


def no_words(call: Call, name: str) -> None:
    if call.rest:
        raise PromptError("takes no words", name=name, found=repr(call.rest))
