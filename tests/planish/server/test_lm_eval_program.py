"""lm-evaluation-harness itself, where it is installed (extra `oracle`), against a server.

Tens of seconds: not in `make test`. It has neither torch nor transformers nor a network here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from planish.compare.quality import tasks
from planish.fast.session.engine import Engine
from planish.fast.session.opening import open_session
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.generate import Stop
from planish.reference.text.requests import Session
from planish.reference.text.sampling import Sampling
from tests.planish.server.serving import Serving, describe
from tests.planish.server.test_lm_eval import POCKET, cut

pytestmark = pytest.mark.whole

COMMON = "dataset_path: json\ntest_split: test\n"
TASKS = {
    "choices": """output_type: multiple_choice
doc_to_text: context
doc_to_choice: "{{choices | map('trim') | list}}"
doc_to_target: answer
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}]
""",
    "last_words": """output_type: loglikelihood
doc_to_text: context
doc_to_target: word
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "texts": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "answers": """output_type: generate_until
doc_to_text: context
doc_to_target: word
generation_kwargs: {until: ["\\n", ".", ",", ";", ":"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@dataclass(frozen=True)
class Pocket:
    """The embedded model in W4A8, served."""

    directory: Path
    serving: Serving


@dataclass(frozen=True)
class Found:
    """What lm_eval found: task -> metric -> value, and task -> each item's responses."""

    metrics: dict[str, dict[str, Any]]
    responses: dict[str, list[Any]]


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory, kernels: list[str]) -> Iterator[Pocket]:
    directory = tmp_path_factory.mktemp("pocket") / "w4a8"
    with CheckpointWriter(directory, POCKET / "model") as writer:
        given = open_checkpoint(POCKET / "model"), writer, recipe("W4A8", group_size=32)
        quantize_checkpoint(*given)
    engine = Engine(open_checkpoint(directory), native=True)

    def warm() -> Session:
        session = open_session(engine, slots=8)
        session.warm()
        return session

    with Serving(warm, describe(directory)) as serving:
        yield Pocket(directory, serving)


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def task_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The items of examples/python.jsonl and two texts, as tasks of lm_eval and of planish."""
    root = tmp_path_factory.mktemp("tasks")
    items = read_lines(POCKET.parent / "examples/python.jsonl")
    items = [one for one in items if all(text[0] == " " for text in one["choices"])]
    items.append({"context": "café", "choices": [" naïve façade", " x"], "answer": 0})
    heldout = (POCKET / "heldout.txt").read_text()
    words = [tasks.split_last_word(line) for line in heldout.splitlines() if len(line) > 60][:12]
    written: dict[str, list[Any]] = {
        "choices": items,
        "last_words": [{"context": a, "word": b, "text": a + b} for a, b in words],
        "texts": [{"text": heldout[i : i + 6000]} for i in (0, 6000)],
    }
    written["answers"] = written["last_words"]
    for name, lines in written.items():
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        files = f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        delimiter = "" if name == "last_words" else " "
        (root / f"{name}.yaml").write_text(
            f'task: mine_{name}\n{COMMON}{files}target_delimiter: "{delimiter}"\n{TASKS[name]}'
        )
    return root


def run_lm_eval(url: str, task_files: Path, out: Path, *more: str) -> Found:
    """lm_eval as docs/serving.md calls it, without a network."""
    beside = str(Path(sys.executable).parent)
    program = shutil.which("lm_eval") or shutil.which("lm_eval", path=beside)
    if program is None:
        pytest.skip("lm_eval is not installed (extra `oracle`)")
    model = f"model=tiny,base_url={url}/v1/completions,num_concurrent=8,max_length=1024"
    names = ",".join(f"mine_{name}" for name in TASKS)
    words = ["--model", "local-completions", "--model_args", model, "--tasks", names, *more]
    kept = ["--include_path", str(task_files), "--output_path", str(out), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home")}
    done = subprocess.run(
        [program, *words, *kept], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = out.glob("tiny/results_*.json")
    samples = {name: next(out.glob(f"tiny/samples_mine_{name}_*.jsonl")) for name in TASKS}
    return Found(
        metrics=json.loads(results.read_text())["results"],
        responses={
            name: [one["resps"] for one in read_lines(file)] for name, file in samples.items()
        },
    )


@pytest.fixture(scope="module")
def first_run(pocket: Pocket, task_files: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return run_lm_eval(pocket.serving.url, task_files, tmp_path_factory.mktemp("out"))


@pytest.mark.parametrize("bos", [False, True])
def test_lm_eval_finds_what_evaluate_finds(pocket, task_files, planish, tmp_path, bos, request):
    """pocket's tokenizer adds BOS, lm_eval's API models do not, unless it begins their contexts."""
    if bos:
        given = ["--system_instruction", "<|endoftext|>"]
        found = run_lm_eval(pocket.serving.url, task_files, tmp_path, *given)
    else:
        found = request.getfixturevalue("first_run")
    for name in ("choices", "last_words"):
        samples, task = tmp_path / "samples.jsonl", task_files / f"{name}.jsonl"
        words = ["--model", pocket.directory, "--task", task, "--samples", samples, "--json"]
        values = planish("evaluate", *words, *(["--no_special_tokens"] * (not bos)))
        ours = read_lines(samples)
        for one, theirs in zip(ours, found.responses[name], strict=True):
            pairs = [(float(total), greedy == "True") for ((total, greedy),) in theirs]
            assert one["log_likelihoods"] == pytest.approx([x for x, _ in pairs], abs=1e-4)
            assert one["greedy"] == [greedy for _, greedy in pairs]
        check_metrics(values.only_json()["metrics"], found.metrics[f"mine_{name}"])


def check_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """The same figures, and standard errors, under lm_eval's names."""
    names = {"accuracy": "acc", "normalized_accuracy": "acc_bytes"}
    for name, values in ours.items():
        if name == "loss":
            expected = math.log(theirs["perplexity,none"])
        else:
            expected = theirs[f"{names[name]},none"]
            error = theirs[f"{names[name]}_stderr,none"]
            assert values["standard_error"] == pytest.approx(error, abs=1e-4)
        assert values["value"] == pytest.approx(expected, abs=1e-4)


def test_lm_eval_finds_what_perplexity_finds(pocket, task_files, planish, first_run):
    found = first_run
    words = ["--model", pocket.directory, "--text", task_files / "texts.jsonl", "--json"]
    values = planish("perplexity", *words, "--protocol", "rolling", "--window", 1022).only_json()
    total = sum(float(one[0][0]) for one in found.responses["texts"])
    assert values["log_likelihood"] == pytest.approx(total, abs=1e-4 * values["tokens"])
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert values[name] == pytest.approx(found.metrics["mine_texts"][f"{name},none"], rel=1e-5)


def test_lm_eval_reads_what_greedy_decoding_writes(pocket, task_files, first_run):
    engine = Engine(open_checkpoint(pocket.directory), native=True)
    items = read_lines(task_files / "answers.jsonl")
    decode, texts = pocket.serving.served.tokenizer.decode, []
    for item in items:
        prompt = pocket.serving.served.tokenizer.encode(item["context"], add_special_tokens=False)
        new = [token for _, token in engine.generate([prompt], Stop(8), Sampling(temperature=0.0))]
        ends = (i for i, token in enumerate(new) if token in engine.config.eos_token_ids)
        new = new[: next(ends, None)]
        texts.append(cut(decode([*prompt, *new])[len(decode(prompt)) :], list("\n.,;:")))
    assert [answer for ((answer,),) in first_run.responses["answers"]] == texts
