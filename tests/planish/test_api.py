"""planish from Python: the same text and the same files as by the command, the same errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import planish as api
from planish.reference.files.load import open_checkpoint
from tests.golden.foreign import TARGET

ROOT = Path(__file__).parents[2]
PROMPT = "The quick brown"


@pytest.mark.matrix(2)
@pytest.mark.parametrize("engine", ["fast", "reference"])
def test_a_model_writes_what_the_command_writes(planish, tiny_llama, engine):
    model = api.load(tiny_llama, engine=engine, kernels="xla")
    text = model.generate(PROMPT, max_new_tokens=9)
    assert "".join(model.generate(PROMPT, max_new_tokens=9, stream=True)) == text
    words = ("--prompt", PROMPT, "--max_new_tokens", 9, "--engine", engine)
    assert planish("generate", "--model", tiny_llama, *words).out == f"{text}\n"


def test_sampling_and_stop_strings(tiny_llama):
    model = api.load(tiny_llama, engine="reference")
    options = {"max_new_tokens": 12, "temperature": 1.0, "seed": 3, "top_k": 40, "top_p": 0.9}
    text = model.generate(PROMPT, **options)
    assert text == model.generate(PROMPT, **options) != model.generate(PROMPT, max_new_tokens=12)
    assert model.generate(PROMPT, stop=text[4:6], **options) == text[: text.index(text[4:6])]


def test_chat_writes_what_the_template_and_generate_write(make_llama):
    path = make_llama()
    (path / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    )
    model = api.load(path, engine="reference")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    options = {"max_new_tokens": 6, "logit_bias": {5: 1.5}}
    text = model.generate("[a][b]", **options)
    assert model.chat(messages, **options) == text
    assert "".join(model.chat(messages, stream=True, **options)) == text


def test_chat_takes_the_template_of_a_given_config(tiny_llama, tmp_path):
    values = open_checkpoint(TARGET / "gguf-q4_0").values
    (tmp_path / "config.json").write_text(json.dumps(values))
    (tmp_path / "chat_template.jinja").write_text("<{{ messages[0].content }}>")
    shutil.copy(tiny_llama / "tokenizer.json", tmp_path)
    file = TARGET / "gguf-q4_0" / "model.gguf"
    model = api.load(file, engine="reference", config=tmp_path)
    text = model.chat([{"role": "user", "content": "a"}], max_new_tokens=3)
    assert text == model.generate("<a>", max_new_tokens=3)


def test_quantize_writes_what_the_command_writes(planish, tiny_llama, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 9)
    api.quantize(tiny_llama, tmp_path / "a", recipe="W8A8", calibration=text, ignore="down_proj")
    words = ("--recipe", "W8A8", "--calibration", text, "--ignore", "down_proj")
    planish("quantize", "--model", tiny_llama, "--out", tmp_path / "b", *words)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda m, out: api.load(out), "not a directory"),
        (lambda m, out: api.load(m, engine="quick"), "engine: unknown"),
        (lambda m, out: api.load(m, kernels="sse9"), "kernels: unknown"),
        (lambda m, out: api.load(m, kv_cache="int4"), "kv_cache: unknown"),
        (lambda m, out: api.load(m, engine="reference").generate(""), "prompt: is empty"),
        (lambda m, out: api.quantize(m, out, recipe="W4A7"), "recipe: unknown"),
        (lambda m, out: api.quantize(m, out, recipe="W4A16", group_size=7), "group_size"),
        (lambda m, out: api.quantize(m, m, recipe="W4A16"), "the model being read"),
    ],
)
def test_bad_input_is_one_typed_line(tiny_llama, tmp_path, call, problem):
    with pytest.raises(api.PlanishError, match=problem) as caught:
        call(tiny_llama, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_unknown_option_is_a_type_error(tiny_llama):
    with pytest.raises(TypeError, match="max_tokens"):
        api.load(tiny_llama, engine="reference").generate(PROMPT, max_tokens=3)


def test_importing_planish_imports_neither_numpy_nor_jax():
    code = "import sys, planish; assert planish.__version__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "jax"} & set(done.stdout.split())


@pytest.mark.whole
def test_the_example_writes_a_function():
    command = [sys.executable, ROOT / "examples" / "quantize_and_write.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def read_config(path):\n    ")
