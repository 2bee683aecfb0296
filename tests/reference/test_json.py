"""One JSON object from a file, or one line that says why not."""

from pathlib import Path

import pytest

from planish.reference.errors import ConfigError, RecipeError
from planish.reference.json import read_json

BAD = [
    ("", "is not JSON"),
    ("[1]", "wrong form; expected a JSON object, found list"),
    ('{"a": 1, "a": 2}', "is not JSON: a key occurs twice"),
    ('{"a": NaN}', "is not JSON: NaN is not a finite number"),
    ('{"a": 1e999}', "is not JSON: 1e999 is not a finite number"),
    ("[" * 100_000, "is not JSON"),
    ("version https://git-lfs.github.com/spec/v1", "Git-LFS pointer.*git lfs pull"),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[message for _, message in BAD])
def test_what_is_no_object_is_refused_by_path(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_json(file)
    assert str(caught.value).startswith(str(file))


def test_the_error_is_of_the_type_that_is_asked_for(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        read_json(tmp_path / "absent.json", RecipeError)


def test_a_file_that_may_not_be_read_is_said_to_be_that(tmp_path, monkeypatch):
    file = tmp_path / "config.json"
    file.write_text("{}")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(ConfigError) as caught:
        read_json(file)
    assert str(caught.value) == f"{file}: cannot be read: Permission denied"


def test_a_device_without_an_end_is_not_read(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is not a file; expected a file, found a device"):
        read_json(tmp_path / "config.json")
