"""One server for the tests of a file, over a W4A8 model with native kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from planish.fast.session.engine import Engine
from planish.fast.session.opening import open_session
from planish.reference.files.load import open_checkpoint
from planish.reference.files.writer import CheckpointWriter
from planish.reference.quantize.checkpoint import quantize_checkpoint
from planish.reference.quantize.recipe import recipe
from planish.reference.text.requests import Session
from tests.models import make_llama
from tests.planish.server.serving import TEMPLATE, Serving, describe

CONTEXT, SLOTS = 512, 4


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in W4A8, one token a byte."""
    root = tmp_path_factory.mktemp("served")
    source = make_llama(root, max_position_embeddings=CONTEXT)
    with CheckpointWriter(root / "quantized", source) as writer:
        quantize_checkpoint(open_checkpoint(source), writer, recipe("W4A8", group_size=32))
    return root / "quantized"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "template.jinja"
    file.write_text(TEMPLATE)
    return file


@pytest.fixture(scope="session")
def engine(quantized: Path, kernels: list[str]) -> Engine:
    return Engine(open_checkpoint(quantized), native=True)


@pytest.fixture(scope="module")
def server(engine: Engine, quantized: Path, template: Path) -> Iterator[Serving]:
    def warm() -> Session:
        session = open_session(engine, slots=SLOTS, context=CONTEXT)
        session.warm()
        return session

    with Serving(warm, describe(quantized, template)) as serving:
        yield serving
