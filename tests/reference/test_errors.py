"""One family, one line, and where, what was expected, what was found."""

import inspect
import os

from planish.reference import errors as reference_errors
from planish.reference.errors import CheckpointError, PlanishError


def test_a_message_says_path_name_problem_expected_and_found():
    error = CheckpointError("wrong shape", path="dir/m", name="w", expected=[2, 3], found=[3, 2])
    assert str(error) == "dir/m: w: wrong shape; expected [2, 3], found [3, 2]"
    assert (error.path, error.name, error.expected, error.found) == ("dir/m", "w", [2, 3], [3, 2])


def test_what_is_unknown_is_left_out():
    assert str(PlanishError("is empty")) == "is empty"
    assert str(PlanishError("is empty", name="stop", found=0)) == "stop: is empty; found 0"


def test_a_message_is_one_printable_line_whatever_a_file_holds():
    text = str(PlanishError("a\nb\u2028c", name="\x1b[31m\ud800", found="x\x00\r\ny"))
    assert text == r"\x1b[31m\ud800: a b c; found x\x00 y"
    assert text.isprintable() and text.encode("utf-8")


def test_a_byte_of_a_path_that_is_no_utf8_is_shown_as_a_byte():
    path = os.fsdecode(b"mod\xe8le")
    assert str(PlanishError("is empty", path=path)) == r"mod\xe8le: is empty"


def test_a_long_value_is_cut():
    text = str(PlanishError("bad value", name="n" * 10**6, expected="a word", found="x" * 10**6))
    assert len(text) < 1000 and text.endswith("x...") and "; expected a word, found x" in text


def test_every_error_is_of_the_family():
    classes = [c for _, c in inspect.getmembers(reference_errors, inspect.isclass)]
    family = [c for c in classes if c.__module__ == "planish.reference.errors"]
    assert len(family) > 7 and all(issubclass(c, PlanishError) and c.__doc__ for c in family)
