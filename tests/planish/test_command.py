"""The command line itself: words, exit codes, signals, and what is imported for what."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from planish.command import VERBS

ROOT = Path(__file__).parents[2]


def imported(*words: object) -> set[str]:
    """Top-level modules in memory after a command has run in a process of its own."""
    code = (
        "import sys; from planish.command import main\n"
        "try: main(['planish', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "print('\\n' + ' '.join({name.partition('.')[0] for name in sys.modules}))"
    )
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_help_goes_to_stdout_and_names_every_verb(shell):
    result = shell("--help")
    assert (result.code, result.err) == (0, "")
    assert all(verb in result.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(planish, verb):
    result = planish(verb, "--help")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith(f"usage: planish {verb} ")
    assert ("--model DIR" in result.out) == (verb not in ("vectors", "plan"))


def test_help_is_a_word_too(planish):
    assert planish("help") == planish("--help")
    assert planish("help", "generate") == planish("generate", "--help")


def test_help_needs_neither_numpy_nor_jax():
    assert not imported("--help") & {"numpy", "jax", "tokenizers"}


def test_the_reference_engine_never_imports_jax(tiny_llama):
    words = ("generate", "--model", tiny_llama, "--max_new_tokens", 2, "--engine", "reference")
    assert "jax" not in imported(*words)


SCRIPT = Path(sys.executable).with_name("planish")


@pytest.mark.skipif(not SCRIPT.exists(), reason="planish is not installed here")
def test_console_script_and_module_are_the_same_command(tiny_llama, shell):
    words = ("inspect", "--model", tiny_llama, "--json")
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=60)
    found, expected = json.loads(done.stdout), json.loads(shell(*words).out)
    kept = found.pop("programs"), expected.pop("programs")  # another process may add some
    assert found == expected and all(kept)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["a verb is missing", "generate"]),
        (["--verson"], ["unknown flag --verson", "did you mean --version?"]),
        (["-v"], ["unknown flag -v", "the verb comes first"]),
        (["--model", "x", "generate"], ["unknown flag --model", "the verb comes first"]),
        (["inspect", "/"], ["unexpected '/'", "did you mean --model DIR?"]),
        (["inspect", "model", "x"], ["unexpected 'model'", "did you mean --model?"]),
        (["bench", "--shape", "1.2B"], ["did you mean 1.1B?"]),
        (["generat"], ["'generat'", "did you mean generate?"]),
        (["quantise", "--model", "x"], ["did you mean quantize?"]),
        (["generate"], ["--model"]),
        (["generate", "--model", "x", "--promt", "y"], ["--promt", "did you mean --prompt?"]),
        (["generate", "--modle", "x"], ["--modle", "did you mean --model?"]),
        (["generate", "--model", "x", "--temprature=0"], ["did you mean --temperature?"]),
        (["generate", "--model", "x", "--engine", "quick"], ["--engine", "'quick'"]),
        (["generate", "--model", "x", "--engine", "refrence"], ["did you mean reference?"]),
        (["generate", "--model", "x", "--max_new_tokens", "many"], ["--max_new_tokens", "'many'"]),
        (["generate", "--model", "x", "--max_new", "3"], ["did you mean --max_new_tokens?"]),
        (["generate", "--model", "x", "leftover"], ["leftover"]),
        (["generate", "--model"], ["--model"]),
        (["bench", "--model", "x", "--jsn"], ["did you mean --json?"]),
    ],
)
def test_a_wrong_word_is_refused_with_the_nearest(planish, words, expected):
    assert planish(*words).refused(*expected)


def test_a_wrong_word_is_refused_the_same_in_a_shell(shell):
    assert shell("generat").refused("did you mean generate?")


@pytest.mark.parametrize(
    "words",
    [
        ["generate"],
        ["quantize", "--out", "never", "--recipe", "W8A16"],
        ["perplexity", "--text", "never"],
        ["evaluate", "--task", str(ROOT / "examples/python.jsonl")],
        ["logits", "--tokens", "1", "--out", "never.npy"],
        ["compare"],
        ["inspect"],
        ["bench"],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_refuses_what_is_no_model(planish, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    file, empty = tmp_path / "file", tmp_path / "empty"
    file.write_text("not a model")
    empty.mkdir()
    assert planish(*words, "--model", tmp_path / "missing").refused("missing", "not a directory")
    assert planish(*words, "--model", file).refused("file", "not a directory")
    assert planish(*words, "--model", empty).refused("config.json", "no such file")
    assert sorted(tmp_path.iterdir()) == [empty, file]


def test_a_path_of_lone_surrogates_is_refused_in_one_line(shell):
    assert shell("inspect", "--model", "/no/\udcff").refused("not a directory")


def test_ctrl_c_exits_with_130(planish, tiny_llama, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planish.verbs.inspect.open_given", interrupt)
    result = planish("inspect", "--model", tiny_llama)
    assert (result.code, result.out, result.err) == (130, "", "interrupted\n")


def test_a_bug_is_a_traceback_and_not_exit_code_2(planish, tiny_llama, monkeypatch):
    monkeypatch.setattr("planish.verbs.inspect.describe", lambda checkpoint: 1 // 0)
    from planish.command import main

    with pytest.raises(ZeroDivisionError):
        main(["planish", "inspect", "--model", str(tiny_llama)])


def test_a_reader_that_goes_away_is_no_error(tiny_llama):
    command = [sys.executable, "-m", "planish", "inspect", "--model", str(tiny_llama)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_text_that_the_terminal_cannot_show_is_escaped(make_llama):
    path = make_llama(name="modèle")
    command = [sys.executable, "-X", "utf8=0", "-m", "planish", "inspect", "--model", str(path)]
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert rb"mod\xe8le" in done.stdout


def test_memory_that_is_not_there_is_one_line(planish, tiny_llama, monkeypatch):
    def load(*_):
        raise MemoryError("Unable to allocate 4.00 GiB for an array")

    monkeypatch.setattr("planish.verbs.generate.open_model", load)
    assert planish("generate", "--model", tiny_llama).refused("memory", "4 GiB", "smaller model")


def test_too_few_addresses_for_the_fast_engine_are_refused_before_it_starts(tiny_llama, shell):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
    words = ["planish", "generate", "--model", str(tiny_llama), "--max_new_tokens", "1"]
    program = f"{limited}from planish.command import main; main({words})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: memory: is limited to 1.00 GiB of addresses")


def test_what_jax_cannot_read_from_the_environment_is_one_line(tiny_llama, monkeypatch, shell):
    monkeypatch.setenv("JAX_DISABLE_JIT", "banana")
    words = ("generate", "--model", tiny_llama, "--max_new_tokens", 1)
    assert shell(*words).refused("jax cannot be imported", "JAX_DISABLE_JIT")


def test_the_version(shell):
    assert re.fullmatch(r"planish \d+\.\d+\.\d+\n", shell("--version").out)
