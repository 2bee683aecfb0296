"""The family of typed errors, and notices for what is not an error.

Each error names where the problem is, what was expected and what was found. A notice is one line
about something that planish tolerated or decided for the user. It goes to the logger `planish`:
the command prints it on stderr, and a program that imports planish may handle it as it likes.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable
from os import PathLike

LONGEST = 300  # characters of one value in a message
LOGGER = logging.getLogger("planish")


def notice(line: str) -> None:
    """Log one line that is not an error."""
    LOGGER.warning("%s", one_line(line))


def suggest(word: str, known: Iterable[str], most: int = 1) -> str:
    """A hint (did you mean X?) at the known words most like a misspelt one, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=most)
    return f" (did you mean {' or '.join(near)}?)" if near else ""


class PlanishError(Exception):
    """A problem with something the user gave us; printed as one line, never as a traceback.

    `path` is the file or directory, `name` the tensor, key or flag inside it.
    """

    def __init__(
        self,
        problem: str,
        *,
        path: str | PathLike[str] | None = None,
        name: str | None = None,
        expected: object = None,
        found: object = None,
    ):
        self.problem, self.path, self.name = problem, path, name
        self.expected, self.found = expected, found
        where = [str(path)] if path is not None else []
        where += [_short(name)] if name is not None else []
        message = ": ".join([*where, _short(problem)])
        if expected is not None:
            message += f"; expected {_short(expected)}"
        if found is not None:
            message += f"{'; ' if expected is None else ', '}found {_short(found)}"
        super().__init__(one_line(message))


def _short(value: object) -> str:
    """Shorten a value: a damaged file may hold a megabyte where a word should be."""
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def one_line(message: str) -> str:
    """Make a message one line; names come from files, and may hold control characters."""
    return "".join(c if c.isprintable() else _escape(c) for c in " ".join(message.split()))


def _escape(character: str) -> str:
    """ESC -> \\x1b; a byte of a path that is not UTF-8 as itself, \\xe8, not as \\udce8."""
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


class ConfigError(PlanishError):
    """config.json, generation_config.json or quantization_config says something impossible."""


class CheckpointError(PlanishError):
    """A weights file or one of its tensors is damaged, missing, unexpected or of the wrong form."""


class QuantizationError(PlanishError):
    """A tensor cannot be put on the grid that was asked for."""


class RecipeError(PlanishError):
    """A recipe, rule or method, or one of its parameters, does not exist or does not fit."""


class TokenizerError(PlanishError):
    """tokenizer.json is missing, damaged, or does not fit the model."""


class PromptError(PlanishError):
    """A prompt or a text is empty, not text, or does not fit the model."""


class ChatError(PlanishError):
    """A model has no chat template, or the template cannot render the conversation."""


class SamplingError(PlanishError):
    """A sampling parameter is outside its range."""


class OutputError(PlanishError):
    """A result cannot be written to the path that was given."""


class OutOfMemoryError(PlanishError):
    """The work needs more memory than the machine has or the process is allowed."""


class KernelsError(PlanishError):
    """The native kernels cannot be compiled or loaded, or do not run on this processor."""


class PeerError(PlanishError):
    """Another process of the same run is missing, does not answer, or runs something else."""


class PeerEndedError(PeerError):
    """Another process of the same run has ended, so this one cannot go on."""
