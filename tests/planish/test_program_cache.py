"""Where compiled programs are kept: never where the user stands, nor where others can write."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from planish.program_cache import compilation_cache, distrust
from planish.reference.errors import OutputError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The user stands in an empty directory, and nothing is written there."""
    stand = tmp_path / "stand"
    stand.mkdir()
    monkeypatch.chdir(stand)
    yield stand
    assert not list(stand.iterdir())


def forget_the_user(uid):
    raise KeyError(uid)


@pytest.mark.parametrize("home", [None, "", "relative", "~"])
@pytest.mark.parametrize("caches", [None, "", "relative"])
def test_without_an_absolute_home_nothing_is_kept(monkeypatch, caplog, home, caches):
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", caches)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr(pwd, "getpwuid", forget_the_user)
    assert compilation_cache(None) is None
    assert caplog.messages == [
        "cache: no home directory is known; nothing that is compiled is kept"
    ]
    assert compilation_cache(None, tell=False) is None and len(caplog.messages) == 1


def test_a_relative_cache_home_gives_way_to_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".cache" / "planish"
    assert compilation_cache(None) == path and path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("flag", ["", "none"])
def test_an_empty_flag_keeps_nothing(flag):
    assert compilation_cache(flag) is None


def test_a_relative_flag_is_made_absolute_at_once(tmp_path, monkeypatch):
    path = compilation_cache("../asked/for")
    assert path == tmp_path / "asked" / "for" and path.is_dir()


def check_refused(monkeypatch, caplog, path: Path, *words: str) -> None:
    """By default done without, with a notice; an error where it was asked for."""
    with pytest.raises(OutputError) as caught:
        compilation_cache(str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent))
    assert compilation_cache(None) is None
    for line in (str(caught.value), *caplog.messages):
        assert all(word in line for word in (str(path), *words)), line
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("part", ["..", ".", "kernels", "xla"])
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_directory_that_others_can_write_is_refused(tmp_path, monkeypatch, caplog, part, mode):
    path = tmp_path / "above" / "planish"
    for name in ("kernels", "xla"):
        (path / name).mkdir(parents=True)
    monkeypatch.setattr("planish.program_cache.is_private_group", lambda gid: False)
    (path / part).resolve().chmod(mode)
    check_refused(monkeypatch, caplog, path, "cannot be trusted", "others can write", "chmod go-w")


def test_only_above_the_cache_a_sticky_directory_will_do(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    assert compilation_cache(str(shared / "planish")) == shared / "planish"
    with pytest.raises(OutputError, match=f"others can write into {shared} "):
        compilation_cache(str(shared))


def test_a_group_of_the_user_alone_may_write(tmp_path, monkeypatch):
    path = tmp_path / "cache"
    path.mkdir()
    path.chmod(0o775)
    user = pwd.getpwuid(os.geteuid()).pw_name
    group = type("Group", (), {"gr_name": user, "gr_mem": [user]})
    monkeypatch.setattr("planish.program_cache.grp.getgrgid", lambda gid: group)
    assert distrust(path) is None
    group.gr_mem = [user, "somebody"]
    assert "others can write" in str(distrust(path))


@pytest.mark.parametrize("part", ["planish", "."])
def test_a_directory_of_another_user_is_refused(tmp_path, monkeypatch, caplog, part):
    if os.geteuid() != 0:
        pytest.skip("only root gives directories away")
    home = tmp_path / "home"
    (home / "planish").mkdir(parents=True)
    os.chown(home / part, 1234, 1234)
    check_refused(monkeypatch, caplog, home / "planish", "belongs to another user (1234)")


def test_nothing_is_made_in_a_home_of_another_user(tmp_path, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("only root gives directories away")
    os.chown(tmp_path, 1234, 1234)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert compilation_cache(None, tell=False) is None and not (tmp_path / "caches").exists()


def test_a_link_to_a_directory_of_others_is_followed_before_it_is_judged(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    target.chmod(0o777)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(OutputError, match="target.*others can write"):
        compilation_cache(str(tmp_path / "link"))


def test_a_cache_that_cannot_be_written_is_read_by_default_only(tmp_path, monkeypatch, caplog):
    path = tmp_path / "planish"
    assert compilation_cache(str(path)) == path
    monkeypatch.setattr("planish.program_cache.os.access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation_cache(None) == path
    assert caplog.messages == [
        f"cache: {path}: cannot be written; nothing that is compiled is kept"
    ]
    with pytest.raises(OutputError, match="cannot be written"):
        compilation_cache(str(path))


def test_a_default_that_cannot_be_made_is_done_without(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation_cache(None) is None
    assert "cannot be written: Not a directory" in caplog.messages[0]
