"""lint: exit codes, both ways to name the checkpoint, JSON, --against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

FOREIGN = Path(__file__).parents[2] / "foreign"
WRONG = FOREIGN / "gptq-v1-asym-g32"  # stored zero points of 15
SOUND = FOREIGN / "gptq-v1-sym-g32"


def test_an_error_is_exit_code_3_and_a_note_is_not(planish):
    wrong, sound = planish("lint", WRONG), planish("lint", SOUND)
    assert (wrong.code, sound.code) == (3, 0)
    assert (wrong.err, sound.err) == ("", "")
    assert "error: 7 of 3,840 zero points are stored as 15" in wrong.out
    assert ": 0 errors, 0 warnings, 2 notes" in sound.out.splitlines()[0]


def test_the_checkpoint_is_an_argument_or_a_flag(planish):
    assert planish("lint", SOUND).out == planish("lint", "--model", SOUND).out
    gguf = FOREIGN / "gguf-q4_0" / "model.gguf"
    assert planish("lint", "--json", gguf).only_json()["format"] == "gguf"
    assert planish("lint").refused("DIR_OR_GGUF", "required")
    assert planish("lint", SOUND, "--model", SOUND).refused("not allowed with")
    assert planish("lint", SOUND, WRONG).refused("unrecognized arguments")
    assert planish("lint", SOUND, "--jsn").refused("unknown flag --jsn", "--json")


def test_json_has_every_name(planish):
    facts = planish("lint", WRONG, "--json").only_json()
    assert (facts["format"], facts["made_by"], facts["linears"]) == ("gptq", "gptqmodel:7.7.0", 7)
    assert [facts[key] for key in ("errors", "warnings", "notes")] == [1, 0, 2]
    assert all(len(row["where"]) >= 6 and row["fix"] for row in facts["findings"])
    assert len(facts["saturation"]) == 7 and facts["against"] is None


def test_a_zero_scale_is_reported_where_generate_refuses(planish, tiny_llama, tmp_path):
    out = tmp_path / "q"
    words = ("--recipe", "W4A16", "--group_size", "32", "--engine", "reference")
    assert planish("quantize", "--model", tiny_llama, "--out", out, *words).code == 0
    assert planish("lint", out).code == 0
    tensors = load_file(out / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight_scale"].reshape(-1)[0] = 0
    save_file(tensors, out / "model.safetensors")
    result = planish("lint", out)
    assert result.code == 3 and "scales are 0" in result.out
    assert "breaks: planish (refuses it)" in result.out
    words = ("--prompt", "a", "--max_new_tokens", 1, "--engine", "reference")
    assert planish("generate", "--model", out, *words).refused("finite scales other than 0")


def test_against_names_the_ten_worst_and_json_all(planish, tiny_llama, tmp_path):
    out = tmp_path / "q"
    words = ("--recipe", "W8A16", "--engine", "reference")
    assert planish("quantize", "--model", tiny_llama, "--out", out, *words).code == 0
    lines = planish("lint", out, "--against", tiny_llama).out.splitlines()
    (start,) = (
        i for i, line in enumerate(lines) if line.startswith("relative error of 14 linears")
    )
    errors = [float(line.split()[0]) for line in lines[start + 1 :]]
    assert len(errors) == 10 and errors == sorted(errors, reverse=True)
    assert 0.004 < errors[-1] <= errors[0] < 0.01
    found = planish("lint", out, "--against", tiny_llama, "--json").only_json()["against"]
    assert len(found["linears"]) == 14 and found["skipped"] == {}
    assert [round(one["error"], 5) for one in found["linears"]][:10] == errors


def test_against_another_model_is_bad_input(planish, tiny_llama, tmp_path):
    assert planish("lint", SOUND, "--against", SOUND).refused("is quantized", "float model")
    assert planish("lint", SOUND, "--against", tiny_llama).refused("has no linear to compare")
    assert planish("lint", SOUND, "--against", tmp_path).refused("config.json", "no such file")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: (path / "config.json").unlink(), ["config.json", "no such file"]),
        (lambda path: (path / "model.safetensors").write_bytes(b"x" * 99), ["truncated"]),
        (lambda path: (path / "model.safetensors").unlink(), ["has no model.safetensors"]),
    ],
)
def test_what_cannot_be_parsed_is_bad_input(planish, tmp_path, change, words):
    path = Path(shutil.copytree(SOUND, tmp_path / "m"))
    change(path)
    assert planish("lint", path).refused(*words)


def test_formats_that_planish_does_not_know_are_bad_input(planish, tmp_path):
    path = Path(shutil.copytree(SOUND, tmp_path / "m"))
    values = json.loads((path / "config.json").read_text())
    values["quantization_config"] = {"quant_method": "hqq"}
    (path / "config.json").write_text(json.dumps(values))
    assert planish("lint", path).refused("hqq cannot be read")


def test_links_are_followed_only_where_they_are_allowed(planish, tmp_path):
    (tmp_path / "m").mkdir()
    for file in SOUND.iterdir():
        (tmp_path / "m" / file.name).symlink_to(file)
    assert planish("lint", tmp_path / "m").refused("links out", "--allow_links")
    assert planish("lint", tmp_path / "m", "--allow_links").code == 0
