"""Signals: the first ends the server in order, the second at once."""

from __future__ import annotations

import asyncio
import signal

import pytest

from planish.server import process
from planish.server.process import Process
from planish.server.service import Service
from planish.server.settings import Settings


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_second_signal_ends_the_process_at_once(monkeypatch, number, code):
    """Check 33: in the middle of the first one's goodbye, here while it says so."""

    def leave(found: int) -> None:
        raise SystemExit(found)

    monkeypatch.setattr(process, "exit_now", leave)
    lines = list[str]()

    async def receive() -> None:
        service = Service(
            settings=Settings(), open=lambda: pytest.fail("opened"), tell=lines.append
        )
        running = Process(service=service, listener=None)  # type: ignore[arg-type]
        running._receive(number)
        assert (running.code, running.signalled.is_set()) == (code, True)
        with pytest.raises(SystemExit) as left:
            running._receive(signal.SIGTERM)
        assert left.value.code == 143
        service.close(1.0)

    asyncio.run(receive())
    assert lines == [f"{number.name}: ending"]
