"""Vectors on disk: readable without planish, the same each time, and results judged one by one."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from planish.command import parse, run
from planish.compare.conformance.vectors import files
from planish.compare.conformance.vectors.files import check_vectors, write_vectors
from planish.reference.errors import OutputError, PlanishError
from planish.reference.grids import INT4_RULES

LARGEST = 4_000_000  # bytes of a directory


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_vectors(tmp_path / "vectors")
    return tmp_path / "vectors"


def answer(directory: Path, name: str, **changes: np.ndarray) -> None:
    """The expected results of a case as somebody's own, with changes."""
    (directory / "results").mkdir(exist_ok=True)
    with np.load(directory / f"{name}.npz") as arrays:
        prefix = "expected_"
        found = {k[len(prefix) :]: arrays[k] for k in arrays.files if k.startswith(prefix)}
    np.savez(directory / "results" / f"{name}.npz", **{**found, **changes})


def outputs(directory: Path, name: str, key: str) -> np.ndarray:
    with np.load(directory / f"{name}.npz") as arrays:
        return arrays[f"expected_{key}"]


def test_the_manifest_describes_every_file(written):
    manifest = json.loads((written / "manifest.json").read_text())
    assert {entry["file"] for entry in manifest["cases"]} == {p.name for p in written.glob("*.npz")}
    for entry in manifest["cases"]:
        with np.load(written / entry["file"], allow_pickle=False) as arrays:
            for name, form in entry["inputs"].items():
                assert (str(arrays[name].dtype), list(arrays[name].shape)) == (
                    form["dtype"],
                    form["shape"],
                )
            for key, form in entry["outputs"].items():
                assert list(arrays[f"expected_{key}"].shape) == form["shape"]
                assert form["equal"] != (f"tolerance_{key}" in arrays.files)
        assert f"`{entry['name']}`" in (written / "README.md").read_text()


def test_it_is_small_and_the_same_bytes_each_time(written, tmp_path):
    write_vectors(tmp_path / "again")
    files = sorted(path.name for path in written.iterdir())
    assert sum((written / name).stat().st_size for name in files) < LARGEST
    for name in files:
        assert (written / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_right_results_agree_and_others_are_counted(written):
    answer(written, "int8-per_row")
    answer(written, "w4a8-g32-per_group")
    outcome = check_vectors(written)
    assert (outcome.checked, outcome.first) == (2, None)
    assert "packing-nibbles" in outcome.missing


def test_the_first_mismatch_is_named(written, capsys):
    codes = outputs(written, "int8-per_row", "codes").copy()
    codes[5, 3] -= 1
    answer(written, "int8-per_row", codes=codes)
    first = check_vectors(written).first
    assert first is not None
    assert (first.case, first.index) == ("int8-per_row", (5, 3))
    assert (first.got - first.wanted) == -1
    assert run(parse(["planish", "vectors", "--check", str(written)])) == 3
    said = capsys.readouterr().out
    assert said.startswith("DIFFER: int8-per_row: codes at [5, 3] differs")
    assert said.endswith(f"; 1 of {codes.size} elements differ\n")


def test_floats_may_differ_within_their_tolerance(written):
    name = "w4a16-g32"
    with np.load(written / f"{name}.npz") as arrays:
        y, tolerance = arrays["expected_y"], arrays["tolerance_y"]
    answer(written, name, y=y + tolerance / 2)
    assert check_vectors(written).first is None
    answer(written, name, y=y + 3 * tolerance)
    assert check_vectors(written).first is not None


def test_an_integer_linear_may_not_differ_by_an_ulp(written):
    name = "w8a8-per_channel-per_token"
    y = outputs(written, name, "y")
    answer(written, name, y=np.nextafter(y, np.float32(np.inf)))
    assert check_vectors(written).first is not None


def test_a_directory_that_holds_something_is_not_written_to(written):
    with pytest.raises(OutputError, match="is not empty"):
        write_vectors(written)


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(PlanishError, match="seed"):
        write_vectors(tmp_path / "out", -1)


def damaged(written: Path, case: str) -> None:
    results = written / "results"
    results.mkdir(exist_ok=True)
    if case == "no zip":
        (results / "int8-per_row.npz").write_bytes(b"PK")
    elif case == "a key is missing":
        np.savez(results / "int8-per_row.npz", scale=np.zeros(1))
    elif case == "text":
        np.savez(results / "int8-per_row.npz", codes=np.array("a"), scale=np.array("b"))
    elif case == "manifest":
        (written / "manifest.json").write_text('{"format": "planish-vectors", "version": 2}')
    elif case == "manifest without cases":
        (written / "manifest.json").write_text('{"format": "planish-vectors", "version": 1}')
    elif case == "vectors":
        answer(written, "int8-per_row")
        (written / "int8-per_row.npz").write_bytes(b"")

    elif case == "a name misspelt":
        answer(written, "int8-per_row")
        answer(written, "kv-cache-int8")
        (results / "kv-cache-int8.npz").rename(results / "kv_cache-int8.npz")


BAD = ("nothing", "no zip", "a key is missing", "text", "manifest", "manifest without cases")


@pytest.mark.matrix(2)
@pytest.mark.parametrize("case", [*BAD, "vectors", "a name misspelt"])
def test_what_cannot_be_read_is_one_line_and_exit_code_2(written, case, capsys):
    damaged(written, case)
    assert run(parse(["planish", "vectors", "--check", str(written)])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_result_of_no_case_is_named_with_the_nearest(written):
    damaged(written, "a name misspelt")
    with pytest.raises(PlanishError, match="kv_cache.*did you mean kv-cache-int8"):
        check_vectors(written)


def test_its_page_has_every_rule_and_no_broken_cell(written):
    page = (written / "README.md").read_text()
    assert all(f"  - `{rule}`: " in page for rule in INT4_RULES)
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    assert {line.replace("\\|", "").count("|") for line in rows} == {3}


def test_the_command_writes_and_checks(tmp_path, capsys):
    out = tmp_path / "vectors"
    assert run(parse(["planish", "vectors", "--out", str(out), "--json"])) == 0
    assert json.loads(capsys.readouterr().out)["cases"] == len(list(out.glob("*.npz")))
    answer(out, "kv-cache-int8")
    assert run(parse(["planish", "vectors", "--check", str(out), "--json"])) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["agree"], values["first_mismatch"], values["checked"]) == (True, None, 1)
    assert run(parse(["planish", "vectors", "--check", str(out)])) == 0
    assert capsys.readouterr().out.startswith("AGREE: 1 cases; ")


NAME = "w8a8-per_channel-per_token"
HEADER = b"\x93NUMPY\x01\x00\x80\x13" + b"(" * 4992


def packed(member: bytes, name: str = "y.npy", flag: int = 0, method: int = 0) -> bytes:
    """A zip of one member, its flag bits and its compression method as given."""
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, member)
        data = bytearray(file.getvalue())
    start = data.rfind(b"PK\x01\x02")
    data[start + 8] |= flag
    data[6] |= flag
    data[start + 10], data[8] = method or data[start + 10], method or data[8]
    return bytes(data)


BROKEN = {
    "empty": b"",
    "pickle": b"\x80\x04N.",
    "no array": packed(b"garbage"),
    "no npy": packed(b"garbage", "y"),
    "header": packed(HEADER),
    "encrypted": packed(b"garbage", flag=1),
    "method": packed(b"garbage", method=97),
}


@pytest.mark.matrix(3)
@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_a_broken_result_is_one_error(written, data):
    (written / "results").mkdir()
    (written / "results" / f"{NAME}.npz").write_bytes(data)
    with pytest.raises(PlanishError, match=r"npz: cannot be read; expected an \.npz file"):
        check_vectors(written)


def test_a_pipe_is_no_result(written):
    (written / "results").mkdir()
    os.mkfifo(written / "results" / f"{NAME}.npz")
    with pytest.raises(PlanishError, match="cannot be read"):
        check_vectors(written)


ENTRIES = [
    ("outputs", None),
    ("outputs", {}),
    ("inputs", [[]]),
    ("parameters", 5),
    ("name", "../x"),
    ("name", 5),
]


@pytest.mark.matrix(2)
@pytest.mark.parametrize(("key", "value"), ENTRIES, ids=str)
def test_an_entry_of_a_wrong_form_is_refused(written, key, value):
    manifest = json.loads((written / "manifest.json").read_text())
    manifest["cases"][0][key] = value
    (written / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(PlanishError, match=r"manifest\.json: cannot be read"):
        check_vectors(written)


@pytest.mark.parametrize("change", ["nothing expected", "shape", "nan"])
def test_a_case_that_would_let_anything_pass_is_refused(written, change):
    answer(written, NAME)
    with np.load(written / f"{NAME}.npz") as file:
        arrays = dict(file)
    shape = arrays["expected_y"].shape
    if change == "nothing expected":
        del arrays["expected_y"]
    else:
        arrays["tolerance_y"] = np.full((3,) if change == "shape" else shape, np.nan)
    np.savez(written / f"{NAME}.npz", **arrays)
    with pytest.raises(PlanishError, match="expected_y: is missing|tolerance_y: bad value"):
        check_vectors(written)


def test_what_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "manifest", full)
    with pytest.raises(OutputError, match="No space left"):
        write_vectors(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
