"""Make golden.json: python tests/golden/chat/make.py   (needs planish[oracle])

For each family and conversation: the text that transformers renders, its ids, and those with
sanitize_control_tokens, where special tokens in the users' text are text. The templates are written
for this test in the forms that the families document; they are not copies of the published files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import transformers
from transformers.utils import chat_template_utils

HERE = Path(__file__).parent
POCKET = HERE.parents[2] / "pocket" / "model" / "tokenizer.json"
NOW = datetime(2024, 7, 26, 12, 30)


class Frozen(datetime):
    """A clock that shows NOW."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def open_tokenizer(name: str, family: dict[str, Any], directory: Path) -> Any:
    """The family's tokenizer: one of two vocabularies, with its special tokens."""
    file = HERE / family["tokenizer"] if "tokenizer" in family else POCKET
    shutil.copy(file, directory / "tokenizer.json")
    shutil.copy(HERE / f"{name}.jinja", directory / "chat_template.jinja")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **family["tokenizer_config"]}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return transformers.AutoTokenizer.from_pretrained(directory)


def render(tokenizer: Any, conversation: dict[str, Any]) -> dict[str, Any]:
    """What transformers makes of a conversation, or what its template says."""
    words = dict(conversation)
    messages, variables = words.pop("messages"), words.pop("variables", {})
    words["add_generation_prompt"] = not words.get("continue_final_message", False)
    words |= variables
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **words)
    except jinja2.exceptions.UndefinedError:
        return {"problem": True}
    except jinja2.exceptions.TemplateError as problem:
        return {"refusal": problem.message}
    except (TypeError, AttributeError, ValueError):
        return {"problem": True}
    found = {"text": text}
    for key, sanitize in (("parsed", False), ("ids", True)):
        encoded = tokenizer.apply_chat_template(
            messages, tokenize=True, sanitize_control_tokens=sanitize, **words
        )
        found[key] = list(encoded["input_ids"])
    return found


def main() -> None:
    chat_template_utils.datetime = Frozen
    given = json.loads((HERE / "conversations.json").read_text())
    made: dict[str, Any] = {"made_by": f"transformers {transformers.__version__}"}
    for name, family in given["families"].items():
        with tempfile.TemporaryDirectory() as directory:
            tokenizer = open_tokenizer(name, family, Path(directory))
            made[name] = {
                case: render(tokenizer, conversation)
                for case, conversation in given["conversations"].items()
            }
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in made.items())
    (HERE / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
