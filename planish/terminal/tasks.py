"""Read the items of a task, one on each line of a JSONL file; all of one kind.

{"context": "...", "choices": ["...", "..."], "answer": 0}    multiple choice
{"text": "..."}                                               last word
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from planish.compare.quality.tasks import LAST_WORD, MULTIPLE_CHOICE, Item, split_last_word
from planish.records import check_text, read_objects
from planish.reference.errors import PromptError, notice

CHOICE_FIELDS, TEXT_FIELD = ("context", "choices", "answer"), "text"
FORM = '{"context": "...", "choices": ["...", "..."], "answer": 0} or {"text": "..."}'


def read_task(path: str | Path) -> list[Item]:
    """The items, in order; blank lines are skipped. Raises PromptError, which names the line."""
    if Path(path).suffix in (".yaml", ".yml"):
        found = "a task of lm_eval, which runs it against `planish serve`"
        raise PromptError("is not read", path=path, expected="FILE.jsonl", found=found)
    items: list[Item] = []
    for number, fields in read_objects(path, FORM):
        items.append(read_item(path, number, fields))
        if items[-1].kind != items[0].kind:
            name, found = f"line {number}", items[-1].kind
            expected = f"{items[0].kind}, as line {items[0].line}"
            raise PromptError("mixes kinds", path=path, name=name, expected=expected, found=found)
    if not items:
        raise PromptError("contains no item", path=path, expected=f"lines like {FORM}")
    notice_missing_spaces(path, items)
    return items


def read_item(path: str | Path, number: int, fields: Mapping[str, object]) -> Item:
    """One line. Fields that are not read have no notice: data sets have many."""
    name = f"line {number}"
    missing = [field for field in CHOICE_FIELDS if field not in fields]
    if not missing:
        return read_choice_item(path, number, fields)
    if TEXT_FIELD not in fields:
        found, name = ", ".join(fields) or "no field", f"{name}: {missing[0]}"
        raise PromptError("is missing", path=path, name=name, expected=FORM, found=found)
    text = check_text(path, f"{name}: {TEXT_FIELD}", fields[TEXT_FIELD])
    context, word = split_last_word(text)
    if not context:
        name, expected = f"{name}: {TEXT_FIELD}", "at least two words"
        raise PromptError("is too short", path=path, name=name, expected=expected, found=repr(text))
    return Item(line=number, kind=LAST_WORD, context=context, choices=(word,), answer=0)


def read_choice_item(path: str | Path, number: int, fields: Mapping[str, object]) -> Item:
    """A line of multiple choice."""
    name = f"line {number}"
    context = check_text(path, f"{name}: context", fields["context"])
    if not context.strip():
        raise PromptError("is blank", path=path, name=f"{name}: context", expected="text")
    choices = read_choices(path, name, fields["choices"])
    answer = read_answer(path, name, fields["answer"], len(choices))
    return Item(line=number, kind=MULTIPLE_CHOICE, context=context, choices=choices, answer=answer)


def read_choices(path: str | Path, name: str, value: object) -> tuple[str, ...]:
    """At least two texts."""
    if not isinstance(value, list) or len(value) < 2:
        name, expected = f"{name}: choices", "a list of at least two texts"
        raise PromptError("bad value", path=path, name=name, expected=expected, found=repr(value))
    return tuple(
        check_text(path, f"{name}: choice {index}", choice) for index, choice in enumerate(value)
    )


def read_answer(path: str | Path, name: str, value: object, count: int) -> int:
    """The index of the right choice, from 0."""
    if type(value) is not int or not 0 <= value < count:
        name, expected = f"{name}: answer", f"0..{count - 1}, the index of a choice"
        raise PromptError("bad value", path=path, name=name, expected=expected, found=repr(value))
    return value


def notice_missing_spaces(path: str | Path, items: Sequence[Item]) -> None:
    """Other programs put a space between context and choice; here both are joined as written."""
    if not any(item.context[-1].isspace() or item.choices[0][0].isspace() for item in items):
        notice(
            f"{path}: no choice begins with a space and no context ends in one;"
            " they are joined as written"
        )
