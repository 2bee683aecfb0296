"""Where messages come from: prompt_toolkit, a plain terminal, or a pipe.

Each reader's `read` returns one message or command. Three quotes begin a message of several lines,
which ends at the next three. EOFError is the end, KeyboardInterrupt a Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from planish.reference.errors import PromptError

QUOTES = '"""'
PROMPT, MORE = "> ", ". "


@dataclass(frozen=True)
class Typed:
    """What was typed. in_quotes: it is a message, even if it begins with /."""

    text: str
    in_quotes: bool = False


class Reader(Protocol):
    """One message after another. `draft`: what the line holds at first, where it can be edited."""

    def read(self, draft: str = "") -> Typed: ...


def is_open(text: str) -> bool:
    """Whether three quotes have begun a message that has not ended."""
    start = text.strip()
    if not start.startswith(QUOTES):
        return False
    return len(start) < 2 * len(QUOTES) or not start.endswith(QUOTES)


def unquoted(text: str) -> Typed:
    """What was typed, without its quotes."""
    inner = text.strip()
    if not inner.startswith(QUOTES) or is_open(inner):
        return Typed(text.strip("\n"))
    return Typed(inner[len(QUOTES) : -len(QUOTES)].strip("\n"), in_quotes=True)


@dataclass(kw_only=True)
class LineReader:
    """Lines from a pipe or from `input`: `next_line` gives one without its end, or EOFError."""

    next_line: Callable[[str], str]

    def read(self, draft: str = "") -> Typed:  # noqa: ARG002  (a line cannot be edited)
        text = self.next_line(PROMPT)
        while is_open(text):
            try:
                text += "\n" + self.next_line(MORE)
            except EOFError:
                raise PromptError("has no end", name="message", expected=QUOTES) from None
        return unquoted(text)


def piped_reader() -> LineReader:
    """Lines of stdin; PromptError for one that is not UTF-8."""
    lines: Iterator[tuple[int, bytes]] = enumerate(sys.stdin.buffer, 1)

    def next_line(_: str) -> str:
        try:
            number, line = next(lines)
        except StopIteration:
            raise EOFError from None
        try:
            return line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as problem:
            found = f"byte {problem.start}"
            name = f"line {number}"
            raise PromptError(
                "is not text", path="stdin", name=name, expected="UTF-8", found=found
            ) from None

    return LineReader(next_line=next_line)


def plain_reader() -> LineReader:
    """Lines of a terminal without prompt_toolkit."""
    import readline  # noqa: F401  (edits what input() reads)

    return LineReader(next_line=input)


@dataclass(kw_only=True)
class EditedReader:
    """Messages that are edited with prompt_toolkit."""

    session: Any

    def read(self, draft: str = "") -> Typed:
        return unquoted(self.session.prompt(PROMPT, default=draft, prompt_continuation=MORE))


def edited_reader(history: Path | None, commands: list[str]) -> EditedReader:
    """A reader with history, pasted lines and completed commands; ImportError without
    prompt_toolkit. It draws on stderr if stdout is no terminal."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    output = None if sys.stdout.isatty() else create_output(stdout=sys.stderr)
    session: PromptSession[str] = PromptSession(
        history=InMemoryHistory() if history is None else FileHistory(str(history)),
        multiline=True,
        key_bindings=make_bindings(),
        completer=WordCompleter(commands, sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        output=output,
    )
    return EditedReader(session=session)


def make_bindings() -> Any:
    """Enter sends what is complete, Alt-Enter begins a line."""
    from prompt_toolkit.application import get_app
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import Condition, has_focus
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()
    complete = Condition(lambda: not is_open(get_app().current_buffer.text))

    @bindings.add("enter", filter=has_focus(DEFAULT_BUFFER) & complete)
    def send(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
    def begin_line(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
