"""Read a message, answer it, and again, until Ctrl-D."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from planish.dialogue.answers import Answer, CtrlC, ctrl_c_noted
from planish.dialogue.commands import Leave, run_command
from planish.dialogue.talk import ContextFullError, NothingSaidError, Talk
from planish.dialogue.typing import Reader, Typed
from planish.reference.errors import PlanishError
from planish.terminal.output import counted

FULL = "/drop removes the oldest turns until it fits, /reset all of them; then it is answered"


def tell(text: str) -> None:
    """What is not an answer goes to stderr."""
    print(text, file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class Loop:
    """interactive: errors are lines, and Ctrl-C ends an answer; otherwise both end the program."""

    talk: Talk
    reader: Reader
    interactive: bool

    def run(self) -> None:
        """Until the end of input, /quit, or Ctrl-C twice."""
        draft, warned = "", False
        while True:
            try:
                typed = self.reader.read(draft)
            except EOFError:
                return
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                if warned:
                    return
                draft, warned = "", True
                tell("Ctrl-C again, or Ctrl-D, leaves")
                continue
            warned = False
            try:
                draft = self._handle(typed)
            except Leave:
                return

    def _handle(self, typed: Typed) -> str:
        """Answer or obey; returns what the next line should hold at first."""
        if not typed.text.strip():
            return ""
        try:
            self.respond(typed)
        except ContextFullError as full:
            self._complain(full)
            tell(FULL)
        except NothingSaidError as nothing:
            tell(str(nothing))
            return typed.text
        except PlanishError as problem:
            self._complain(problem)
        return ""

    def respond(self, typed: Typed) -> None:
        """Answer a message or run a command, and print what comes of it."""
        text, command = typed.text, typed.text.startswith("/") and not typed.in_quotes
        if command and text.startswith("//"):
            text, command = text[1:], False
        with self._interruptible() as noted:
            if command:
                answer = run_command(text, self.talk, tell, noted)
            else:
                answer = self.talk.ask(text, noted)
        if answer is not None:
            report(answer, self.talk, self.interactive)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[CtrlC]:
        if not self.interactive:
            yield CtrlC()
            return
        with ctrl_c_noted() as noted:
            yield noted

    def _complain(self, problem: PlanishError) -> None:
        if not self.interactive:
            raise problem
        tell(f"error: {problem}")


def report(answer: Answer, talk: Talk, interactive: bool) -> None:
    """End the answer's line; say why it ended early, and with /set verbose on how fast it was."""
    print(flush=True)
    if answer.finish == "length":
        tell(describe_length(answer, talk, interactive))
    elif answer.finish == "cancelled":
        tell("stopped; what came is kept (/undo removes it, /regenerate answers again)")
    if talk.settings.verbose:
        tell(describe_answer(answer))


def describe_length(answer: Answer, talk: Talk, interactive: bool) -> str:
    """Why an answer was cut off."""
    if answer.tokens < talk.settings.max_new_tokens:
        return f"cut off: the context of {talk.speaker.context} tokens is full (/drop, /reset)"
    remedy = "/set max_new_tokens N" if interactive else "--max_new_tokens N"
    return f"cut off after {counted(answer.tokens, 'token')} ({remedy})"


def describe_answer(answer: Answer) -> str:
    """prompt 120 tokens (96 cached), 57 new tokens, 41.2 tokens/s, seed 5."""
    line = f"prompt {counted(len(answer.prompt), 'token')} ({answer.cached} cached)"
    line += f", {counted(answer.tokens, 'new token')}"
    line += f", {answer.rate:.1f} tokens/s" if answer.rate is not None else ""
    return line + (f", seed {answer.sampling.seed}" if answer.sampling.temperature else "")
