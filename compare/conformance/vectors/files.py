"""Write the cases as files, for kernels in any language, and read results back.

DIR/manifest.json      every case: parameters, inputs and outputs
DIR/README.md          how to read them
DIR/NAME.npz           a case's arrays: inputs by name, expected_KEY, and tolerance_KEY of floats
DIR/results/NAME.npz   yours: an array under each KEY
"""

from __future__ import annotations

import json
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from planish.compare.conformance.vectors.cases import Arrays, Case, all_cases
from planish.compare.conformance.vectors.linear import NUMBERS, MismatchError, require_equal
from planish.reference.errors import OutputError, PlanishError, suggest
from planish.reference.json import read_json

FORMAT, VERSION = "planish-vectors", 1
ENTRY = {"name": str, "kind": str, "compute": str, "parameters": dict, "inputs": dict}
ENTRY |= {"outputs": dict}
BROKEN = (  # what a damaged or a hostile .npz file may raise
    *(ValueError, EOFError, KeyError, SyntaxError, RecursionError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
README = """\
# Conformance vectors

Each case is one `.npz` file (a zip of `.npy` arrays, little-endian, C order) and one entry of
`manifest.json`, which names its parameters, its inputs and its outputs. `expected_KEY` is what an
output must be: equal, bit for bit, unless the file also has `tolerance_KEY`, the largest allowed
|found - expected| of each element.

To check a kernel, write `results/NAME.npz` with an array under each output's KEY, then run
`planish vectors --check DIR`. Cases without results are skipped and counted.

## Words

- X [T, K]: activations, one row a token. W [N, K]: a weight, one row an output. y = X Wt + bias.
- Codes are integers on a grid, a scale is the float that one step of the grid is worth.
  INT8: x ~ code * scale, codes -127..127. INT4: w ~ (code - zero_point) * scale, codes 0..15; where
  a case has no zero_point it is 8 everywhere.
- group_size: consecutive inputs of one row that share a scale; -1 is the whole row. The last group
  may be shorter.
- activation, the granularity at which a linear quantizes X: `per_token` has a scale for each row,
  `per_tensor` one for all rows, `static` the given activation_scale, `per_group` one for each row
  and group of inputs; `float` leaves X in floats.
- `grow` in a name is the group size -1, the whole row. wq are codes, q - z codes less the
  zero point, a_scale the scales of X that `activation` asks for, f32 a rounding to float32.
- INT4 codes of linears are packed: byte j of a row holds input 2j in its low nibble and input
  2j + 1 in its high nibble.

## Rules

- scale = max(absmax, 1e-5) / 127 in float32 for INT8. Divide by a scale; never multiply by its
  reciprocal. rint rounds half to even. Clip before the cast.
- INT4 scales by `rule`, over the weights of a group; a group of zeros has scale 1 and zero_point 8:
  - `signed`: m / -8, m the weight of largest magnitude, the first of equals; zero_point 8
  - `absmax`: absmax / 7.5; zero_point 8
  - `absmax7`: absmax / 7; zero_point 8
  - `minmax`: (hi - lo) / 15, lo = min(w, 0), hi = max(w, 0);
    zero_point clip(rint(-lo / scale), 0, 15)
- They are stored as float16. Where that would make one of a weight's scales 0 or Inf, all are
  stored as float32: those as they are, the others with their float16 value.
- A scale is rounded to its storage type first, and codes are computed with the rounded scale.
- Integer sums are exact. The float operations after them are rounded one by one, in the order of
  the case's formula, without fused multiply-add; bias comes last.

| case | what to compute |
| --- | --- |
"""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How many cases had results, which had none, and the first result that differs."""

    checked: int
    missing: tuple[str, ...]
    first: MismatchError | None


def write_vectors(out: Path, seed: int = 0) -> int:
    """Write every case into a new or empty directory; return how many there are.

    Raises OutputError where the directory is not empty or cannot be written.
    """
    if seed < 0:
        raise PlanishError("bad value", name="seed", expected="0 or more", found=seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise OutputError("is not empty", path=out, expected="a new or an empty directory")
        return _write_into(out, list(all_cases(seed)), seed)
    except OSError as error:
        raise OutputError("cannot be written", path=out, found=error.strerror) from error


def _write_into(out: Path, cases: list[Case], seed: int) -> int:
    """Every file, or none where one cannot be written, so that the same command may run again."""
    try:
        for case in cases:
            np.savez(out / f"{case.name}.npz", allow_pickle=False, **collect_arrays(case))
        lines = [f"| `{case.name}` | {_in_a_cell(case.compute)} |" for case in cases]
        (out / "README.md").write_text(README + "\n".join(lines) + "\n")
        (out / "manifest.json").write_text(json.dumps(manifest(cases, seed), indent=1) + "\n")
    except BaseException:
        for name in (*(f"{case.name}.npz" for case in cases), "README.md", "manifest.json"):
            (out / name).unlink(missing_ok=True)
        raise
    return len(cases)


def _in_a_cell(text: str) -> str:
    """Markdown ends a table's cell at a bare |."""
    return text.replace("|", "\\|")


def collect_arrays(case: Case) -> Arrays:
    """The arrays of a case's file, by name."""
    expected = {f"expected_{key}": array for key, array in case.expected.items()}
    return case.inputs | expected | {f"tolerance_{k}": v for k, v in case.tolerance.items()}


def manifest(cases: list[Case], seed: int) -> dict[str, Any]:
    """The list of cases as JSON values, for programs."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "seed": seed,
        "cases": [
            {
                "name": case.name,
                "file": f"{case.name}.npz",
                "kind": case.kind,
                "compute": case.compute,
                "parameters": dict(case.parameters),
                "inputs": {name: describe_array(array) for name, array in case.inputs.items()},
                "outputs": {
                    key: {**describe_array(array), "equal": key not in case.tolerance}
                    for key, array in case.expected.items()
                },
            }
            for case in cases
        ],
    }


def describe_array(array: np.ndarray) -> dict[str, Any]:
    """Type and shape."""
    return {"dtype": str(array.dtype), "shape": list(array.shape)}


def check_vectors(directory: Path) -> Outcome:
    """Compare DIR/results with the cases in DIR.

    Raises PlanishError for a directory or a file that cannot be read, for a result of no case or
    without one of its keys, and where there are no results at all.
    """
    checked, missing, entries = 0, [], read_manifest(directory)
    require_known(directory / "results", {entry["name"] for entry in entries})
    for entry in entries:
        results = directory / "results" / f"{entry['name']}.npz"
        if not results.exists():
            missing.append(entry["name"])
            continue
        case = read_case(directory, entry)
        found = read_arrays(results)
        require_keys(results, case.expected, found)
        checked += 1
        try:
            require_equal(case, found)
        except MismatchError as error:
            return Outcome(checked=checked, missing=tuple(missing), first=error)
    if checked == 0:
        expected = "NAME.npz of at least one case"
        raise PlanishError("holds no results", path=directory / "results", expected=expected)
    return Outcome(checked=checked, missing=tuple(missing), first=None)


def read_manifest(directory: Path) -> list[dict[str, Any]]:
    """Read the entries of manifest.json; raises PlanishError for any other file."""
    path = directory / "manifest.json"
    try:
        values = read_json(path, PlanishError)
        if values["format"] == FORMAT and repr(values["version"]) == repr(VERSION):
            return [_check_entry(entry) for entry in values["cases"]]
        found = f"{values['format']} {values['version']}"
    except (ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__} {error}"
    expected = f"{FORMAT} {VERSION}, as planish vectors --out writes it"
    raise PlanishError("cannot be read", path=path, expected=expected, found=found)


def _check_entry(given: Any) -> dict[str, Any]:
    """Require fields of their types, and for a name that of a file beside the manifest."""
    entry = {key: given[key] for key in ENTRY}
    for key, kind in ENTRY.items():
        if not isinstance(entry[key], kind):
            raise TypeError(f"in {key}: {type(entry[key]).__name__}")
    if not entry["outputs"] or not re.fullmatch(r"[\w.-]+", entry["name"]):
        raise ValueError(f"in a case: name {entry['name']!r}, outputs {list(entry['outputs'])}")
    return entry


def read_case(directory: Path, entry: Mapping[str, Any]) -> Case:
    """Read a case back."""
    path = directory / f"{entry['name']}.npz"
    arrays = read_arrays(path)
    require_keys(path, [f"expected_{key}" for key in entry["outputs"]], arrays)
    parts: dict[str, Arrays] = {"expected": {}, "tolerance": {}}
    for name, array in arrays.items():
        prefix, _, key = name.partition("_")
        if prefix in parts and key in entry["outputs"]:
            parts[prefix][key] = array
    for key, tolerance in parts["tolerance"].items():
        expected = parts["expected"][key].shape
        if tolerance.shape != expected or not (tolerance >= 0).all():
            form = f"numbers from 0 on, of shape {list(expected)}"
            raise PlanishError("bad value", path=path, name=f"tolerance_{key}", expected=form)
    inputs = {name: arrays[name] for name in entry["inputs"] if name in arrays}
    return Case(
        name=entry["name"],
        kind=entry["kind"],
        compute=entry["compute"],
        parameters=entry["parameters"],
        inputs=inputs,
        **parts,
    )


def read_arrays(path: Path) -> Arrays:
    """Read every array of an .npz file; raises PlanishError for any other file."""
    try:
        if not path.is_file():
            raise OSError("no file")
        with zipfile.ZipFile(path) as file:
            arrays = {n.removesuffix(".npy"): _read_array(file, n) for n in file.namelist()}
    except OSError as error:
        found = error.strerror or str(error)
    except BROKEN as error:
        found = f"{type(error).__name__} {error}" if zipfile.is_zipfile(path) else "no zip archive"
    else:
        for name, array in arrays.items():
            if array.dtype.kind not in NUMBERS:
                problem = "holds no numbers"
                raise PlanishError(problem, path=path, name=name, found=array.dtype)
        return arrays
    raise PlanishError("cannot be read", path=path, expected="an .npz file", found=found)


def require_known(results: Path, names: Set[str]) -> None:
    """Raise PlanishError for a result of no case: a name misspelt would not be judged."""
    for path in sorted(results.glob("*.npz")):
        if path.stem not in names:
            expected = f"a name of manifest.json{suggest(path.stem, sorted(names))}"
            raise PlanishError("is no case", path=path, expected=expected)


def _read_array(file: zipfile.ZipFile, name: str) -> np.ndarray:
    with file.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def require_keys(path: Path, expected: Iterable[str], found: Arrays) -> None:
    """Raise PlanishError for a missing output."""
    for key in expected:
        if key not in found:
            have = ", ".join(sorted(found)) or "nothing"
            raise PlanishError("is missing", path=path, name=key, expected="an array", found=have)
