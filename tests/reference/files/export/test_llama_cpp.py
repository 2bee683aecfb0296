"""llama.cpp loads what we write and computes the same; skipped without llama-cpp-python.

A build for AMX dies of an illegal instruction at its first product of repacked weights, so weights
are not repacked (compare/bench/peers/llama_cpp.py).
"""

import numpy as np
import pytest

from planish.reference.files.load import load_weights
from planish.reference.model.transformer import forward
from planish.reference.text.tokenizer import load_tokenizer
from tests.models import byte_tokenizer
from tests.reference.files.export.test_gguf import ENDS, MODELS, SIZES, quantize, write

llama_cpp = pytest.importorskip("llama_cpp")
SILENT = llama_cpp.llama_log_callback(lambda *_: None)  # the library keeps the pointer
TEXT = "Hello, w\N{LATIN SMALL LETTER O WITH DIAERESIS}rld 42"


@pytest.fixture(scope="module")
def backend():
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(SILENT, None)


def logits_of(path, text):
    """The ids of a text and the logits of each, [T, V], with caches in float32."""
    parameters = llama_cpp.llama_model_default_params()
    parameters.use_extra_bufts = False
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), parameters)
    assert model, path
    vocabulary, raw = llama_cpp.llama_model_get_vocab(model), text.encode()
    buffer = (llama_cpp.llama_token * 256)()
    count = llama_cpp.llama_tokenize(vocabulary, raw, len(raw), buffer, 256, True, True)
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = 256
    parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
    parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = llama_cpp.llama_init_from_model(model, parameters)
    batch = llama_cpp.llama_batch_init(256, 0, 1)
    for place in range(count):
        batch.token[place], batch.pos[place] = buffer[place], place
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        batch.logits[place] = 1
    batch.n_tokens = count
    assert llama_cpp.llama_decode(context, batch) == 0
    rows = llama_cpp.llama_vocab_n_tokens(vocabulary)
    pointers = [llama_cpp.llama_get_logits_ith(context, place) for place in range(count)]
    logits = np.stack([np.ctypeslib.as_array(one, (rows,)).copy() for one in pointers])
    llama_cpp.llama_batch_free(batch)
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return list(buffer[:count]), logits


@pytest.mark.parametrize("name", [name for name in MODELS if name != "another llama3"])
@pytest.mark.usefixtures("backend")
def test_llama_cpp_computes_the_same(tiny, tmp_path, name):
    """In floats to a few units of rounding; in Q4_0 it rounds inputs to INT8 codes."""
    path = tiny.write(tmp_path / "model", tiny.values("llama", **SIZES, **ENDS) | MODELS[name])
    byte_tokenizer().save(str(path / "tokenizer.json"))
    codes = quantize(path, tmp_path / "codes")
    for source, tolerance in ((path, 1e-5), (codes, 0.03)):
        made = write(source, tmp_path / f"{source.name}.gguf", dtype="float32")
        ids, found = logits_of(made.path, TEXT)
        assert load_tokenizer(made.path, made.config).encode(TEXT) == ids
        expected = forward(made.config, load_weights(made), ids)
        assert np.abs(found - expected).max() < tolerance * np.ptp(expected)
