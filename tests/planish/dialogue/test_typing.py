"""Where messages come from: keys through prompt_toolkit, lines of a pipe, a real terminal."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import time

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from planish import pocket
from planish.dialogue.history import history_file
from planish.dialogue.typing import LineReader, Typed, edited_reader, is_open, piped_reader
from planish.reference.errors import PromptError
from planish.reference.files.load import open_checkpoint

UP, ALT_ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b\r", "\x03", "\x04"
PASTE = "\x1b[200~first line\nsecond line\x1b[201~"


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """typed(keys) -> what a reader with a history reads from these keys, message after message."""

    def call(keys, history=None):
        found = []
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            reader = edited_reader(history, ["/help", "/quit"])
            pipe.send_text(keys)
            while True:
                try:
                    found.append(reader.read())
                except (EOFError, KeyboardInterrupt) as end:
                    return [*found, type(end)]

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    return call


@pytest.mark.matrix(2)
@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("hello\r", Typed("hello")),
        (f"{PASTE}\r", Typed("first line\nsecond line")),
        (f"one{ALT_ENTER}two\r", Typed("one\ntwo")),
        ('"""\rone\r/two\r"""\r', Typed("one\n/two", in_quotes=True)),
        ('"""one"""\r', Typed("one", in_quotes=True)),
        ("/he\t\r", Typed("/help")),
        ("grüße 🙂\r", Typed("grüße 🙂")),
    ],
)
def test_keys_become_a_message(typed, keys, expected):
    assert typed(keys + CTRL_D) == [expected, EOFError]


def test_ctrl_c_is_an_interrupt_and_arrow_up_recalls_a_line(typed, tmp_path):
    assert typed(f"half{CTRL_C}") == [KeyboardInterrupt]
    file = tmp_path / "history"
    typed(f"one\r{PASTE}\r{CTRL_D}", file)
    assert typed(f"{UP}\r{CTRL_D}", file)[0] == Typed("first line\nsecond line")
    assert typed(f"{UP}{UP}{UP}{UP}\r{CTRL_D}", file)[0] == Typed("one")


def test_the_history_is_the_users_only(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    file = history_file()
    assert file == tmp_path / "state" / "planish" / "chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    file.chmod(0o644)
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    assert history_file() is None and not (tmp_path / "elsewhere").exists()
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null/state")
    assert history_file() is None and "typed lines are not kept" in caplog.text
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert history_file() == tmp_path / ".local" / "state" / "planish" / "chat_history"


@pytest.mark.parametrize(
    ("text", "opened"),
    [('"""', True), ('"""a', True), ('"""a"""', False), ('""""', True), ("a", False), ("", False)],
)
def test_three_quotes_open_a_message(text, opened):
    assert is_open(text) == opened


def test_lines_of_a_pipe_are_messages(monkeypatch):
    content = b'a\r\n\n"""one\ntwo"""\nlast'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    reader = piped_reader()
    found = [reader.read() for _ in range(4)]
    assert found == [Typed("a"), Typed(""), Typed("one\ntwo", in_quotes=True), Typed("last")]
    with pytest.raises(EOFError):
        reader.read()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a\nb\xff\n", "stdin: line 2: is not text; expected UTF-8, found byte 1"),
        (b'a\n"""b\n', "message: has no end"),
    ],
)
def test_a_pipe_with_bad_lines_is_one_line(monkeypatch, content, words):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    reader = piped_reader()
    reader.read()
    with pytest.raises(PromptError, match=words):
        reader.read()


def test_a_plain_terminal_reads_line_by_line():
    lines = iter(['"""', "a", 'b"""'])
    assert LineReader(next_line=lambda _: next(lines)).read() == Typed("a\nb", in_quotes=True)


IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # its Ctrl-C is for this session
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command in a terminal of its own: `expect` waits for a text, `send` presses keys."""

    def __init__(self, command, environment):
        self.fd, other_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, *command],
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
            start_new_session=True,
            env={**os.environ, **environment},
        )
        os.close(other_end)
        self.seen = ""

    def expect(self, pattern, seconds=60):
        """Wait for a text after the last one found; the end of the terminal is the text ENDED."""
        end = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < end, (pattern, self.seen)
            if select.select([self.fd], [], [], 1)[0]:
                self.seen += self._read()
        self.seen = self.seen[found.end() :]

    def _read(self):
        try:
            content = os.read(self.fd, 2**16).decode("utf-8", "replace")
        except OSError:  # the other end is closed
            return "ENDED"
        if "\x1b[6n" in content:  # where is the cursor?
            self.send("\x1b[1;1R")
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content)

    def send(self, keys):
        os.write(self.fd, keys.encode())

    def wait(self):
        """The exit code."""
        self.expect("ENDED")
        return self.process.wait(60)


@pytest.fixture
def terminal(tmp_path):
    """planish chat in a terminal, with a model whose answers have no end."""
    model = shutil.copytree(pocket.MODEL, tmp_path / "model")
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
    (model / "chat_template.jinja").write_text(template)
    ends = open_checkpoint(model).config.eos_token_ids
    words = ["--model", str(model), "--engine", "reference", "--verbose"]
    words += [word for end in ends for word in ("--logit_bias", f"{end}:-100")]
    opened = Terminal(
        [sys.executable, "-m", "planish", "chat", *words],
        {"XDG_STATE_HOME": str(tmp_path / "state"), "TERM": "xterm"},
    )
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.fd)


@pytest.mark.whole
def test_a_conversation_in_a_terminal(terminal):
    """Check 44."""
    terminal.expect("/help lists the commands")
    terminal.expect("sampling: temperature 0")
    terminal.expect(">")
    terminal.send("/set max_new_tokens 3\r")
    terminal.expect("max_new_tokens 3\r\n")
    terminal.expect(">")
    terminal.send(f"{PASTE}")
    terminal.expect("second line")
    terminal.send("\r")
    terminal.expect("cut off after 3 tokens")
    terminal.expect(r"prompt \d+ tokens \(0 cached\), 3 new tokens")
    terminal.expect(">")
    terminal.send("/set max_new_tokens 900\r")
    terminal.expect("max_new_tokens 900\r\n")
    terminal.expect(">")
    terminal.send(f"{UP}{UP}\r")  # the pasted lines again
    terminal.expect(r"second line\s+\w")  # the answer has begun; before it the cursor may move
    terminal.send(CTRL_C)
    terminal.expect("stopped; what came is kept")
    terminal.expect(">")
    terminal.send("/set max_new_tokens 3\r")
    terminal.expect("max_new_tokens 3\r\n")
    terminal.expect(">")
    terminal.send("/regenerate\r")
    terminal.expect(r"prompt \d+ tokens \(\d+ cached\), 3 new tokens")
    terminal.expect(">")
    terminal.send("/tokens\r")
    terminal.expect(r"\d+ tokens of 1024")
    terminal.expect(">")
    terminal.send("/reset\r")
    terminal.expect("the conversation is empty")
    terminal.expect(">")
    terminal.send("/system " + "w " * 1200 + "\r")
    terminal.expect("the system message is set")
    terminal.expect(">")
    terminal.send("Hello\r")
    terminal.expect(r"context: \d+ tokens too many")
    terminal.expect(">")
    terminal.send(CTRL_C)
    terminal.expect("Ctrl-C again, or Ctrl-D, leaves")
    terminal.expect(">")
    terminal.send(CTRL_C)
    assert terminal.wait() == 0
