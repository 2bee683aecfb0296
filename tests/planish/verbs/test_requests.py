"""generate --requests: a line for each answer, and with kill -9 in between the same answers."""

import json
import shutil
import signal
import subprocess
import sys

import pytest

from planish.openai.batch import Batch, read_lines
from planish.reference.text.requests import Event, OneByOne
from tests.planish.openai.conftest import served_by

DRIVER = """
import os, signal, sys
from planish.command import main
from planish.openai.answer_file import AnswerFile

stop, half, words = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
add, done = AnswerFile.add, []

def add_or_die(self, answer):
    if len(done) == stop:
        if half == "half":
            self.file.write(b'{"id": "batch_req_1", "custom')
            self.file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(answer)
    add(self, answer)

AnswerFile.add = add_or_die
main(["planish", *words])
"""


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def texts(lines):
    """custom_id -> the texts of an answer, or why there are none."""
    found = {}
    for line in lines:
        answer = line["response"]["body"]
        words = [choice["text"] for choice in answer.get("choices", [])]
        found[line["custom_id"]] = words or answer["error"]["param"]
    return found


def in_process(model, path, seed):
    """What the definition answers."""
    served, engine = served_by(model)
    batch = Batch(served=served, session=OneByOne(engine.config, engine.weights, 0), seed=seed)
    return list(batch.answer(read_lines(path)))


@pytest.fixture
def command(tiny_llama, tmp_path):
    given = ("--requests", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    return "generate", "--model", tiny_llama, "--engine", "reference", *given


def test_every_form_of_a_line_is_answered(planish, command, tmp_path):
    batch = {"method": "POST", "url": "/v1/completions", "body": {"prompt": "b", "max_tokens": 2}}
    lines = [{"custom_id": "b", **batch}, {"prompt": "a", "max_tokens": 3}, {"messages": []}]
    write(tmp_path / "in.jsonl", lines)
    result = planish(*command)
    assert result.code == 0, result
    assert "3 answers, of which 1 refused" in result.err
    found = {line["custom_id"]: line for line in lines_of(tmp_path / "out.jsonl")}
    assert set(found) == {"b", "line-2", "line-3"}
    assert set(found["b"]) == {"id", "custom_id", "response", "error"}
    assert found["b"]["response"]["body"]["usage"]["completion_tokens"] == 2
    assert found["line-3"]["response"]["status_code"] == 400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


@pytest.mark.whole
@pytest.mark.parametrize(("stop", "half"), [(120, "half"), (0, "whole"), (199, "whole")])
def test_a_run_that_was_killed_goes_on_to_the_same_answers(
    planish, command, tiny_llama, tmp_path, stop, half
):
    """Two hundred requests without seeds: the rest are drawn as the first run would have."""
    write(tmp_path / "in.jsonl", [{"prompt": f"{i} ", "max_tokens": 2} for i in range(200)])
    words = [sys.executable, "-c", DRIVER, stop, half, *command]
    done = subprocess.run([*map(str, words)], capture_output=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done
    partial, out = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl"
    assert not out.exists()
    kept = (partial / "answers.jsonl").read_bytes().rpartition(b"\n")[0]
    if stop:
        assert planish(*command).refused("out.jsonl.partial", f"{stop} answers", "--resume")
    seed = json.loads((partial / "request.json").read_text())["seed"]
    result = planish(*command, "--resume", *([] if stop else ["--seed", seed]))
    assert result.code == 0, result
    assert out.read_bytes().startswith(kept)
    found = lines_of(out)
    assert len(found) == 200
    assert texts(found) == texts(in_process(tiny_llama, tmp_path / "in.jsonl", seed))
    assert len({answer for (answer,) in texts(found).values()}) > 100
    assert not partial.exists()


def test_only_the_same_run_goes_on(planish, command, tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1}, {"prompt": "b"}])
    words = [sys.executable, "-c", DRIVER, "1", "whole", *command]
    subprocess.run([*map(str, words)], capture_output=True, timeout=600)
    write(tmp_path / "in.jsonl", [{"prompt": "c", "max_tokens": 1}])
    assert planish(*command, "--resume").refused("partial", "requests", "another value")
    assert len(lines_of(tmp_path / "out.jsonl.partial" / "answers.jsonl")) == 1


def test_nothing_is_replaced(planish, command, tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1}])
    (tmp_path / "out.jsonl").write_text("mine")
    assert planish(*command).refused("out.jsonl", "exists")
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["contains no request"]),
        ("{", ["line 1", "is not JSON"]),
        ('{"prompt": "a", "prompt": "b"}', ["line 1"]),
        ('{"custom_id": "a", "prompt": "x"}\n' * 2, ["line 2", "occurs twice"]),
        ('{"custom_id": 5, "prompt": "x"}', ["line 1: custom_id", "a text"]),
        ('{"url": "/v1/embeddings", "body": {}}', ["line 1: url", "/v1/completions"]),
        ('{"url": ["/v1/completions"], "body": {}}', ["line 1: url"]),
        ('{"url": "/v1/completions", "method": "GET", "body": {}}', ["line 1: method", "POST"]),
        ('{"url": "/v1/completions", "body": []}', ["line 1: body", "an object"]),
    ],
)
def test_a_file_that_is_none_of_requests_is_refused_in_one_line(
    planish, command, tmp_path, content, words
):
    (tmp_path / "in.jsonl").write_text(content)
    assert planish(*command).refused("in.jsonl", *words)
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_flags_that_do_not_belong_are_refused(planish, command, tiny_llama, tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a"}])
    assert planish(*command, "--temperature", "1").refused("--temperature", "--requests")
    assert planish(*command[:-2]).refused("--out")
    plain = planish("generate", "--model", tiny_llama, "--out", tmp_path / "x")
    assert plain.refused("--out", "is for --requests")


class Failing:
    """A session whose first request fails in its second step."""

    slots = 1

    def __init__(self, inner):
        self.inner, self.steps = inner, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self):
        self.steps += 1
        events = self.inner.step()
        if self.steps == 2:
            self.inner.cancel(events[0].handle)
            return [Event(handle=events[0].handle, finish="error", error="logits: NaN")]
        return events


def test_a_failure_is_the_answer_of_its_request_only(tiny_llama, tmp_path):
    lines = [{"prompt": "a", "max_tokens": 4, "n": 2}, {"prompt": "b", "max_tokens": 2}]
    path = write(tmp_path / "in.jsonl", lines)
    served, engine = served_by(tiny_llama)
    session = Failing(OneByOne(engine.config, engine.weights, 0))
    first, second = Batch(served=served, session=session, seed=1).answer(read_lines(path))
    assert first["response"]["status_code"] == 500
    assert first["response"]["body"]["error"]["message"] == "logits: NaN"
    assert second["response"]["status_code"] == 200
    assert session.is_idle


def test_a_finished_file_leaves_nothing_to_resume(planish, command, tmp_path):
    write(tmp_path / "in.jsonl", [{"prompt": "a", "max_tokens": 1}])
    assert planish(*command).code == 0
    assert planish(*command, "--resume").refused("out.jsonl: exists, so nothing is left to resume")


def test_a_chat_takes_the_template_of_a_given_config(planish, tiny_llama, tmp_path):
    """For a GGUF file, whose template it replaces, as in planish chat."""
    file, given = tmp_path / "model.gguf", tmp_path / "given"
    converted = planish("convert", "--model", tiny_llama, "--format", "gguf", "--out", file)
    assert converted.code == 0, converted
    shutil.copytree(tiny_llama, given, ignore=shutil.ignore_patterns("*.safetensors*"))
    (given / "chat_template.jinja").write_text("{{ messages[0].content }}, as given")
    write(
        tmp_path / "in.jsonl", [{"messages": [{"role": "user", "content": "ab"}], "max_tokens": 1}]
    )
    words = ("generate", "--model", file, "--engine", "reference", "--config", given)
    words += ("--requests", tmp_path / "in.jsonl", "--out", tmp_path / "out.jsonl")
    assert planish(*words).code == 0
    (found,) = lines_of(tmp_path / "out.jsonl")
    assert found["response"]["body"]["usage"]["prompt_tokens"] == len("ab, as given")
