"""What a newcomer reads first: the text that the demo lets both engines write."""

from __future__ import annotations

from planish import demo, pocket
from planish.reference.files.load import open_checkpoint
from planish.reference.text.engine import Engine


def test_the_prompt_ends_where_the_tokenizer_cuts_words():
    assert demo.PROMPT == demo.PROMPT.rstrip()


def test_the_embedded_model_writes_a_function_and_not_a_column_of_comments():
    checkpoint = open_checkpoint(pocket.MODEL)
    text = demo.continue_prompt(checkpoint, Engine(checkpoint))
    assert text.startswith('\n    """')
    assert "return path" in text and "#" not in text
