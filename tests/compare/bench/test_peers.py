"""Peers compute the same Llama as the reference, and their processes fail in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from planish.compare.bench.peers import PEERS, Peer, PeerError, find_peer, is_installed, weights
from planish.compare.bench.peers.process import ROOT, PeerProcess
from planish.compare.bench.sizes import ModelSize
from planish.fast.native.instruction_sets import cpu_features
from planish.reference.linear import Linear
from planish.reference.model.config import ModelConfig, repeat_layer
from planish.reference.model.layers import Norm
from planish.reference.model.rope import Rope
from planish.reference.model.transformer import forward
from planish.reference.model.weights import Weights, build_block

TINY = ModelSize(name="tiny", hidden=256, layers=2, heads=4, kv_heads=2, ffn=512, vocab=320)
BITS = {"Q4_0": 4, "Q8_0": 8, "int4": 4, "int8": 8, "bf16": 8}  # of a format's codes
NOISE = 0.05  # of activations in 8 bits, relative to the logits; a wrong sign or row makes it 1
PARTS = ("q", "k", "v", "o", "gate", "up", "down")
SUBJECTS = [(name, form) for name, peer in PEERS.items() for form in peer.formats]

ECHO = """
import json, os, signal, sys
print("noise of a library", file=sys.stderr)
job = json.loads(sys.stdin.readline())
if job["format"] == "fragile" and not job["fallback"]:
    os.kill(os.getpid(), signal.SIGILL)
found = os.path.isdir(job["directory"])
facts = {"version": f"directory: {found}", "bytes": 1, "load_seconds": 0.0, "kernels": "AVX"}
print(json.dumps({"ready": True, **facts}), flush=True)
for line in sys.stdin:
    op = json.loads(line)["op"]
    if op == "prefill":
        print(json.dumps({"error": "OutOfCheese: none left"}), flush=True)
    elif op == "decode":
        print("the last words", file=sys.stderr)
        sys.stderr.flush()
        os._exit(7)
"""


def float_model(size: ModelSize, bits: int) -> tuple[ModelConfig, Weights]:
    """The reference's model of the weights that all peers pack."""
    parts = weights.make_linears(size, bits, lambda codes: codes)
    linears = {(part, i): Linear(weights.dequantize(codes, bits)) for part, i, codes in parts}
    found = config(size)
    ones = np.ones(size.hidden, np.float32)
    one = Norm(weight=ones, kind=found.norm, eps=found.norm_eps)
    norms = {"attention_norm": one, "mlp_norm": one}
    blocks = [
        build_block(kind, {part: linears[part, i] for part in PARTS}, norms)
        for i, kind in enumerate(found.layers)
    ]
    embed = weights.make_embedding(size)
    return found, Weights(embed, None, None, None, blocks, one, None, linears["head", 0])


def config(size: ModelSize) -> ModelConfig:
    return ModelConfig(
        model_type="llama",
        vocab_size=size.vocab,
        hidden_size=size.hidden,
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        intermediate_size=size.ffn,
        max_positions=128,
        norm="rms_norm",
        norm_eps=weights.EPS,
        activation="silu",
        gated_mlp=True,
        layers=repeat_layer(size.layers, size.head_dim, rope=0),
        ropes=(Rope(theta=weights.THETA, dim=size.head_dim),),
        embedding_size=size.hidden,
        tie_embeddings=False,
    )


def relative_error(found: list[list[float]], expected: np.ndarray) -> float:
    """Root mean square of the difference over that of what was expected."""
    return float(np.linalg.norm(np.array(found) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("name", "form"), SUBJECTS)
def test_a_peer_computes_the_reference_and_answers_with_times(
    name: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = find_peer(name)
    if not is_installed(subject):
        pytest.skip(f"{name} is not installed: {subject.install}")
    tokens = np.random.default_rng(3).integers(0, TINY.vocab, (2, 20))
    bits = BITS[form.partition("-")[0]]
    expected = np.stack([forward(*float_model(TINY, bits), row)[-1] for row in tokens])
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    with PeerProcess(subject, TINY, form, threads=2, timeout=120, directory="here") as process:
        assert process.facts.version.split()[1] and process.facts.bytes > 0
        assert process.facts.kernels
        for cuts in ([], [15], [17, 18, 19]):  # a prompt, two pieces of one, and single steps
            pieces = [piece.tolist() for piece in np.split(tokens, cuts, axis=1)]
            assert relative_error(process.logits(pieces), expected) < NOISE
        assert process.prefill(16) > 0
        assert process.decode(4) > 0
        assert process.decode(4, batch=3, context=40) > 0


def test_an_unknown_peer_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(PeerError, match=r"peers: unknown; expected some of llama\.cpp, openvino"):
        find_peer("ggml")


def test_an_unknown_format_is_refused_before_anything_is_started() -> None:
    with pytest.raises(PeerError, match=r"llama\.cpp: unknown format; .*Q4_0, Q8_0, found 'Q5_K'"):
        PeerProcess(find_peer("llama.cpp"), TINY, "Q5_K", threads=1)


def test_a_peer_that_is_not_installed_says_how_to_install_it() -> None:
    absent = replace(find_peer("torch"), module="no_such_module")
    assert not is_installed(absent)
    with pytest.raises(PeerError, match="torch: not installed; expected pip install torch"):
        PeerProcess(absent, TINY, "int8", threads=1)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """A peer of a few lines, which fails to prefill, dies of decoding and never gives logits."""
    (tmp_path / "fake_peer.py").write_text(ECHO, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    formats = ("int8", "fragile")
    return Peer("fake", "json", "", formats, "fake_peer", fallback="caution on")


def test_an_error_in_the_child_is_one_line_and_the_child_goes_on(fake: Peer) -> None:
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60) as process:
        for _ in range(2):
            with pytest.raises(PeerError, match="^fake: failed; found OutOfCheese: none left$"):
                process.prefill(4)


def test_a_child_that_dies_is_one_line_with_its_last_words(fake: Peer) -> None:
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60) as process:
        died = "^fake: its process has died; found exit code 7: the last words$"
        with pytest.raises(PeerError, match=died):
            process.decode(4)
        with pytest.raises(PeerError, match=died):
            process.decode(4)


def test_a_child_that_dies_of_a_signal_while_loading_is_replaced_by_its_fallback(
    fake: Peer, caplog: pytest.LogCaptureFixture
) -> None:
    with PeerProcess(fake, TINY, "fragile", threads=1, timeout=60) as process:
        assert process.facts.mode == "caution on"
        with pytest.raises(PeerError, match="OutOfCheese"):
            process.prefill(4)
    assert f"found signal {signal.SIGILL:d}" in caplog.text
    assert "again with caution on" in caplog.text
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60) as process:
        assert process.facts.mode == "" and process.facts.kernels == "AVX"


def test_without_a_fallback_a_child_that_dies_of_a_signal_is_an_error(fake: Peer) -> None:
    alone = replace(fake, fallback="")
    with pytest.raises(
        PeerError, match=f"fake: its process has died; found signal {signal.SIGILL:d}"
    ):
        PeerProcess(alone, TINY, "fragile", threads=1, timeout=60).__enter__()


def test_a_killed_child_is_named_by_its_signal(fake: Peer) -> None:
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60) as process:
        os.kill(process.child.pid, signal.SIGKILL)
        with pytest.raises(PeerError, match="has died; found signal 9"):
            process.prefill(4)


def test_a_child_that_cannot_start_is_an_error(fake: Peer) -> None:
    absent = replace(fake, runner="no_such_runner")
    with pytest.raises(PeerError, match="exit code 1: .*No module named no_such_runner"):
        PeerProcess(absent, TINY, "int8", threads=1, timeout=60).__enter__()


def test_a_child_that_does_not_answer_is_an_error_and_is_killed(fake: Peer) -> None:
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60) as process:
        process.timeout = 0.1
        with pytest.raises(PeerError, match="fake: no answer; expected one in 0.1 s"):
            process.logits([[[1]]])
    assert process.child.returncode == -signal.SIGKILL


def test_a_directory_that_does_not_exist_is_an_error(fake: Peer, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    with pytest.raises(PeerError, match="absent: cannot be written to; found No such file"):
        PeerProcess(fake, TINY, "int8", threads=1, directory=absent).__enter__()


def test_a_child_finds_a_directory_whose_name_is_relative(
    fake: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").mkdir()
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60, directory="here") as process:
        assert process.facts.version == "directory: True"


def test_what_a_child_may_write_is_removed(fake: Peer, tmp_path: Path) -> None:
    with PeerProcess(fake, TINY, "int8", threads=1, timeout=60, directory=tmp_path):
        assert directories(tmp_path)
    assert not directories(tmp_path)


def directories(path: Path) -> list[Path]:
    """Those in it, but for that of Python's compiled modules."""
    return [one for one in path.iterdir() if one.is_dir() and one.name != "__pycache__"]


def test_no_peer_is_imported_by_the_process_that_measures() -> None:
    code = "import sys, planish.compare.bench.peers.process; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "planish.compare.bench.peers.process" in loaded.split()
    assert not {subject.module for subject in PEERS.values()} & set(loaded.split())


def test_layers_have_separate_bytes_and_values_within_the_grid() -> None:
    for bits, low, high in ((4, 0, 15), (8, -127, 127)):
        parts = list(weights.make_linears(TINY, bits, lambda codes: codes))
        assert len(parts) == 7 * TINY.layers + 1
        first, second = (codes for part, _, codes in parts if part == "up")
        assert not np.shares_memory(first, second)
        np.testing.assert_array_equal(np.roll(first, 1, axis=0), second)
        assert (first.min(), first.max()) == (low, high)
        assert 0.9 < weights.dequantize(first, bits).std() * np.sqrt(TINY.hidden) < 1.1


def openvino_products(form: str) -> str:
    """What OpenVINO says that it multiplies by, of a model in this format."""
    subject = find_peer("openvino")
    if not is_installed(subject):
        pytest.skip(f"openvino is not installed: {subject.install}")
    with PeerProcess(subject, TINY, form, threads=2, timeout=120) as process:
        return process.facts.kernels


def test_openvino_multiplies_in_int8_on_amx_if_its_dynamic_quantization_is_on() -> None:
    if "amx_int8" not in cpu_features():
        pytest.skip("OpenVINO's fused INT8 kernels are for processors with AMX")
    assert "2 LLMMLP of i8" in openvino_products("int8-dynamic")  # of TINY's two layers
    as_it_comes = openvino_products("int8")
    assert "LLMMLP" not in as_it_comes and "amx_bf16" in as_it_comes
