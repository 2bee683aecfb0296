"""A run's rows, where one of its peers dies."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from planish.compare.bench import speed
from planish.compare.bench.engines import MeasuredEngine, open_peers
from planish.compare.bench.peers import PEERS, PeerError
from planish.compare.bench.sizes import MODEL_SIZES
from planish.compare.bench.workload import parse_workload
from planish.reference.files.load import open_checkpoint
from planish.verbs.bench import as_text

MODEL = Path(__file__).parents[3] / "pocket" / "model"
RATES = {"memory_read_bytes_per_second": 1e9, "int8_operations_per_second": 1e12}


class FixedTimer:
    """Answers every question with one second; as a peer, dies at its second decoding."""

    compile_seconds = None

    def __init__(self, dies: bool):
        self.dies, self.asked = dies, 0

    def prefill(self, tokens: int) -> float:
        return 1.0

    def decode(self, tokens: int, batch: int = 1, context: int = 1) -> float:
        self.asked += 1
        if self.dies and self.asked == 2:
            raise PeerError("its process has died", name="frail", found="signal 4")
        return 1.0


class FixedRates:
    """Peak rates that nobody measured."""

    def __init__(self, native: bool):
        assert not native

    def sample(self) -> None:
        pass

    def medians(self) -> dict[str, float]:
        return RATES | {"float32_operations_per_second": 1e11}


def make_engine(name: str, mode: str = "", dies: bool = False) -> MeasuredEngine:
    return MeasuredEngine(
        name=name,
        format="Q4_0",
        bits=4,
        timer=FixedTimer(dies),
        weight_bytes=10**9,
        load_seconds=0.5,
        integer=True,
        is_planish=name == "planish",
        mode=mode,
        kernels="AVX AMX" if mode else "",
    )


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(speed, "PeakRates", FixedRates)
    engines = [make_engine("planish"), make_engine("frail", dies=True), make_engine("odd", "half")]
    tests = [parse_workload(name) for name in ("pp8", "tg4")]
    options = speed.Options(workloads=tests, native=False, runs=2)
    return speed.report(
        speed.measure("tiny", open_checkpoint(MODEL).config, engines, options), ["absent"]
    )


def test_a_peer_that_dies_costs_its_rows_and_not_the_run(result: dict[str, Any]) -> None:
    assert [row["engine"] for row in result["rows"]] == ["planish", "odd"] * 2
    assert [row["median"] for row in result["rows"]] == [8, 8, 4, 4]
    assert [engine["engine"] for engine in result["engines"]] == ["planish", "odd"]
    assert result["missing"] == [
        "absent",
        "Q4_0 of frail: its process has died; found signal 4",
    ]


def test_a_row_says_in_which_mode_a_peer_ran_and_by_which_kernels(result: dict[str, Any]) -> None:
    text = as_text(result)
    assert "| tiny | odd | Q4_0, half |" in text and "| tiny | planish | Q4_0 |" in text
    assert "odd Q4_0, half: load 0.50 s; AVX AMX\n" in text
    assert "planish Q4_0: load 0.50 s\n" in text


def test_a_format_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> MeasuredEngine:
        raise PeerError("failed", name="torch", found="no such operator")

    monkeypatch.setattr("planish.compare.bench.engines.is_installed", lambda peer: True)
    monkeypatch.setattr("planish.compare.bench.engines.open_peer", fail)
    with ExitStack() as stack:
        found, missing = open_peers(stack, ["torch"], MODEL_SIZES["110M"], {8, 16}, None)
    assert found == []
    assert missing == [
        f"{form} of torch: failed; found no such operator" for form in PEERS["torch"].formats[1:]
    ]
