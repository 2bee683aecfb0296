"""Putting in place: nothing that exists is replaced unasked, and what is asked for is whole."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from planish.reference.errors import OutputError
from planish.reference.files import placing
from planish.reference.files.placing import check_file, write_file
from planish.reference.files.writer import CheckpointWriter


def write_model(target, mark, overwrite=False):
    with CheckpointWriter(target, None, overwrite) as writer:
        writer.add("w", np.zeros(3, np.float32))
        writer.finish({"mark": mark})


def mark_of(target):
    return json.loads((target / "config.json").read_text())["mark"]


def leftovers(target):
    return [p for p in target.parent.iterdir() if p != target]


@pytest.fixture(params=["renameat2", "plain calls"])
def system(request, monkeypatch):
    """With the system call that refuses to replace, and without it."""
    if request.param == "plain calls":
        monkeypatch.setattr(placing.ctypes, "CDLL", lambda *_, **__: object())


def notes(target):
    target.mkdir()
    (target / "notes.txt").write_text("precious")


APPEARING = {
    "an empty directory": Path.mkdir,
    "a directory": notes,
    "a file": lambda target: target.write_text("precious"),
    "a dangling link": lambda target: target.symlink_to("nowhere"),
}


def state(target):
    """What is at a path, to be compared."""
    if target.is_dir():
        return {p.name: p.read_bytes() for p in target.iterdir()}
    return target.readlink() if target.is_symlink() else target.read_bytes()


@pytest.mark.parametrize("appear", APPEARING.values(), ids=APPEARING)
def test_what_appears_after_the_start_is_not_replaced(tmp_path, system, appear):
    target = tmp_path / "out"
    with (  # noqa: PT012  (leaving the writer raises)
        pytest.raises(OutputError, match="out: appeared while this was computed"),
        CheckpointWriter(target) as writer,
    ):
        appear(target)
        before = state(target)
        writer.finish({})
    assert state(target) == before and leftovers(target) == []


def test_of_two_writers_the_second_loses(tmp_path, system):
    target = tmp_path / "out"
    with (  # noqa: PT012  (leaving the writer raises)
        pytest.raises(OutputError, match="out: appeared while"),
        CheckpointWriter(target) as second,
    ):
        write_model(target, 1)
        second.finish({})
    assert mark_of(target) == 1 and leftovers(target) == []


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("appear", list(APPEARING.values())[1:], ids=list(APPEARING)[1:])
def test_overwrite_replaces_nothing_but_a_model_when_it_looks_again(
    tmp_path, system, appear, existing
):
    target = tmp_path / "out"
    if existing:
        write_model(target, 1)
    with (  # noqa: PT012  (leaving the writer raises)
        pytest.raises(OutputError, match="out: (exists and|is a symbolic link)"),
        CheckpointWriter(target, overwrite=True) as writer,
    ):
        if existing:
            target.rename(tmp_path / "moved")
        appear(target)
        before = state(target)
        writer.finish({})
    assert state(target) == before
    assert [p.name for p in leftovers(target)] == ["moved"] * existing


@pytest.mark.parametrize("appear", list(APPEARING.values())[1:], ids=list(APPEARING)[1:])
def test_what_was_taken_away_by_mistake_is_put_back(tmp_path, monkeypatch, system, appear):
    """Between the last look and the exchange another program is quicker."""
    target = tmp_path / "out"
    write_model(target, 1)

    def quicker(hidden, there, check):
        target.rename(tmp_path / "moved")
        appear(target)
        exchange(hidden, there, check)

    exchange = placing.exchange_directory
    monkeypatch.setattr(placing, "exchange_directory", quicker)
    with pytest.raises(OutputError, match="out: (exists and|is a symbolic link)"):
        write_model(target, 2, overwrite=True)
    appear(tmp_path / "same")
    assert state(target) == state(tmp_path / "same")
    assert {p.name for p in leftovers(target)} == {"moved", "same"}


def test_what_cannot_be_put_back_is_kept_and_named(tmp_path, monkeypatch):
    target = tmp_path / "out"
    write_model(target, 1)
    monkeypatch.setattr(placing.ctypes, "CDLL", lambda *_, **__: object())

    def appears(hidden, there):
        if not there.exists():
            notes(there)
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(placing, "place_directory", appears)
    with pytest.raises(OutputError, match=r"out: .* it is kept; found .*-old$") as caught:
        write_model(target, 2, overwrite=True)
    (kept,) = leftovers(target)
    assert str(caught.value).endswith(kept.name) and mark_of(kept) == 1
    assert (target / "notes.txt").exists()


def test_what_cannot_be_exchanged_back_is_kept_and_named(tmp_path, monkeypatch):
    target, hidden, calls = tmp_path / "out", tmp_path / "hidden", []
    notes(target)
    hidden.mkdir()

    def once(source, there, flag):
        calls.append(flag)
        if len(calls) > 1:
            return False
        there.rename(tmp_path / "between")
        source.rename(there)
        (tmp_path / "between").rename(source)
        return True

    def refuse(there):
        raise OutputError("no", path=there)

    monkeypatch.setattr(placing, "_rename", once)
    with pytest.raises(OutputError, match=r"out: .* it is kept; found .*hidden-old$"):
        placing.exchange_directory(hidden, target, refuse)
    assert (tmp_path / "hidden-old" / "notes.txt").read_text() == "precious"
    assert not hidden.exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_is_neither_followed_nor_replaced(tmp_path, overwrite):
    write_model(tmp_path / "model", 1)
    (tmp_path / "out").symlink_to(tmp_path / "model")
    with pytest.raises(OutputError, match="out: is a symbolic link .* neither followed nor"):
        CheckpointWriter(tmp_path / "out", None, overwrite)
    assert mark_of(tmp_path / "out") == 1


@pytest.mark.parametrize("place", ["", ".", "x/.."])
def test_a_target_without_a_name_is_refused(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is not the name of a new directory"):
        CheckpointWriter(place, None, overwrite=True)


def test_the_longest_name_can_be_written(tmp_path):
    write_model(tmp_path / ("n" * 255), 1)
    assert mark_of(tmp_path / ("n" * 255)) == 1


def test_a_name_that_is_no_utf8_can_be_written(tmp_path):
    target = tmp_path / os.fsdecode(b"mod\xe8le")
    write_model(target, 1)
    assert mark_of(target) == 1 and leftovers(target) == []


def write(path, data=b"new"):
    check_file(Path(path))
    with write_file(Path(path)) as file:
        file.write(data)


@pytest.fixture
def place(tmp_path):
    """A directory with a file `old` and nothing else."""
    (tmp_path / "old").write_bytes(b"old")
    return tmp_path


def contents(place):
    return {p.name: p.read_bytes() for p in place.iterdir()}


def test_a_file_is_written_whole_and_an_old_one_replaced(place):
    write(place / "file")
    write(place / "old", b"newer")
    assert contents(place) == {"file": b"new", "old": b"newer"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["old", "file", "link"])
def test_an_old_file_is_never_lost_when_writing_fails(place, error, name):
    (place / "link").symlink_to("old")
    expected = OutputError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught, write_file(place / name) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    if isinstance(error, OSError):
        assert str(caught.value) == f"{place / name}: cannot be written: {error.strerror}"
    assert contents(place) == {"old": b"old", "link": b"old"}


def test_links_are_followed_to_a_file_and_to_a_free_name(place):
    (place / "inside").mkdir()
    (place / "inside" / "link").symlink_to("../old")
    (place / "first").symlink_to("inside/link")
    (place / "dangling").symlink_to(place / "inside" / "free")
    write(place / "first", b"a")
    write(place / "dangling", b"b")
    assert (place / "old").read_bytes() == b"a" and (place / "inside/free").read_bytes() == b"b"
    links = [place / "first", place / "inside" / "link", place / "dangling"]
    assert all(link.is_symlink() for link in links)


def test_permissions_of_an_old_file_are_kept(place):
    (place / "old").chmod(0o640)
    write(place / "old")
    assert (place / "old").stat().st_mode & 0o777 == 0o640


def test_a_fifo_gets_the_bytes_and_stays(place):
    os.mkfifo(place / "fifo")
    (place / "link").symlink_to("fifo")
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        write(place / "link")
        assert os.read(reader, 10) == b"new" and (place / "fifo").is_fifo()
    finally:
        os.close(reader)


def test_a_device_gets_the_bytes_and_stays():
    here, there = os.openpty()
    try:
        name = Path(os.ttyname(there))
        write(name)
        assert os.read(here, 10) == b"new" and name.is_char_device()
    finally:
        os.close(here)
        os.close(there)


@pytest.mark.parametrize("device", [(1, 3), (1, 7)], ids=["null", "full"])
def test_null_and_full_stay_devices(place, device):
    try:
        os.mknod(place / "device", stat.S_IFCHR | 0o666, os.makedev(*device))
        (place / "device").open("wb").close()
    except PermissionError:
        pytest.skip("needs the right to make devices")
    if device == (1, 7):
        with pytest.raises(OutputError, match="device: cannot be written: No space left"):
            write(place / "device")
    else:
        write(place / "device")
    assert (place / "device").is_char_device() and len(list(place.iterdir())) == 2


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}", "{place}/link"])
def test_an_open_descriptor_is_written_to_at_its_position(place, name):
    (place / "link").symlink_to("/proc/self/fd/99")
    with (place / "old").open("ab") as file:
        os.dup2(file.fileno(), 99)
    try:
        write(name.format(99, place=place))
    finally:
        os.close(99)
    assert (place / "old").read_bytes() == b"oldnew"


def test_a_closed_descriptor_is_refused():
    with pytest.raises(OutputError, match="/dev/fd/98: cannot be written: "):
        check_file(Path("/dev/fd/98"))


def test_a_reader_that_went_away_is_no_error_of_the_output(place):
    reader, writer = os.pipe()
    os.close(reader)
    try:
        with pytest.raises(BrokenPipeError):
            write(f"/dev/fd/{writer}")
    finally:
        os.close(writer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none/x", "none/x: cannot be written: no such directory"),
        ("old/x", "old/x: cannot be written: no such directory"),
        ("", ": is a directory; expected the name of a file"),
        ("loop", "loop: cannot be written: Too many levels of symbolic links"),
        ("broken", "broken: cannot be written: no such directory"),
    ],
)
def test_where_no_file_can_be_written_is_refused_before_anything(place, name, message):
    (place / "loop").symlink_to("loop")
    (place / "broken").symlink_to("none/x")
    with pytest.raises(OutputError, match=f"^{place / name}{message.removeprefix(name)}$"):
        check_file(place / name)


@pytest.mark.parametrize("name", ["old", "file"])
def test_what_may_not_be_written_is_refused_before_anything(place, monkeypatch, name):
    monkeypatch.setattr(placing.os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match=f"{name}: cannot be written: Permission denied"):
        check_file(place / name)


def test_a_disk_is_never_written_to(place, monkeypatch):
    monkeypatch.setattr(placing.stat, "S_ISBLK", lambda mode: True)
    with pytest.raises(OutputError, match="old: is a disk"):
        check_file(place / "old")
