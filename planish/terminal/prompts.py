"""Read the prompts: first those of --prompt, then those of each --prompt_file.

A file is one prompt; a FILE.jsonl has one on each line: {"prompt": "text"}.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planish.records import read_records
from planish.reference.errors import PromptError
from planish.reference.text.tokenizer import read_text

FIELD = "prompt"


def read_prompts(typed: Sequence[str], files: Sequence[str]) -> list[str]:
    """All prompts; raises PromptError for an empty one and for a file without any."""
    texts = [*typed, *(text for file in files for text in read_file(file))]
    if any(text == "" for text in texts):
        raise PromptError("is empty", name="prompt", expected="text, or no --prompt at all")
    return texts


def read_file(path: str) -> list[str]:
    """One prompt, or one from each line that is not blank."""
    if Path(path).suffix.lower() != ".jsonl":
        return [read_text(path)]
    texts = read_records(path, FIELD)
    if not texts:
        expected = f'lines like {{"{FIELD}": "text"}}'
        raise PromptError("contains no prompt", path=path, expected=expected)
    return texts
