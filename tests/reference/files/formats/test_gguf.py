"""GGUF files that llama.cpp wrote, and damaged ones."""

import json
import shutil
import struct
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from planish.fast.session.engine import Engine
from planish.reference import gguf
from planish.reference.errors import PlanishError
from planish.reference.files.export.gguf_container import Part, write_container
from planish.reference.files.formats.gguf import translate_gguf
from planish.reference.files.formats.gguf_blocks import TYPES
from planish.reference.files.formats.gguf_config import FACTORS, rebuild_config, rope_factors
from planish.reference.files.load import load_weights, open_checkpoint
from planish.reference.gguf import GgufTensor, read_gguf
from planish.reference.model.rope import Llama3, Rope
from planish.reference.model.transformer import forward
from planish.reference.quantized import dequantize
from planish.reference.text.gguf_tokenizer import gguf_chat_template
from planish.reference.text.tokenizer import load_tokenizer
from tests.gguf_files import key, tensor, write, write_tied
from tests.golden.foreign import TARGET, digest

SAMPLES = sorted(path for path in TARGET.iterdir() if (path / "model.gguf").exists())
TOKENS = [1, 5, 9, 200, 7, 310, 3]
CONFIG = {  # of the models that llama.cpp converted
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_weights_are_those_of_llama_cpp_to_the_bit(path):
    checkpoint = open_checkpoint(path / "model.gguf")
    expected = json.loads((path / "dequantized.json").read_text())
    assert expected
    for name, wanted in expected.items():
        prefix = name.removesuffix(".weight")
        scheme = checkpoint.declared.targets.get(prefix)
        found = checkpoint.entries[f"{prefix}.weight"].map()
        if scheme is not None:
            rows = len(found)
            cols = found.shape[1] * (2 if scheme.bits == 4 else 1)
            read = checkpoint.format.read(checkpoint, prefix, scheme, (rows, cols))
            found = dequantize(read.weight)
        assert digest(found) == wanted, prefix


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_the_config_is_rebuilt_from_the_keys(path):
    values = open_checkpoint(path).values
    assert {name: values[name] for name in CONFIG} == CONFIG


@pytest.mark.matrix(2)
@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_both_engines_compute_the_same(path):
    checkpoint = open_checkpoint(path)
    expected = forward(checkpoint.config, load_weights(checkpoint), TOKENS)
    found = Engine(checkpoint).forward(TOKENS)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_text_survives_the_tokenizer(path):
    tokenizer = load_tokenizer(path / "model.gguf", open_checkpoint(path).config)
    ids = tokenizer.encode("hello, w\N{LATIN SMALL LETTER O WITH DIAERESIS}rld")
    assert ids[0] == 1
    assert tokenizer.decode(ids) == "hello, w\N{LATIN SMALL LETTER O WITH DIAERESIS}rld"


def test_a_config_beside_the_file_is_used(tmp_path):
    path = Path(shutil.copytree(TARGET / "gguf-q4_0", tmp_path / "model"))
    values = open_checkpoint(path).values | {"max_position_embeddings": 77}
    (path / "config.json").write_text(json.dumps(values))
    assert open_checkpoint(path).config.max_positions == 77
    assert open_checkpoint(path / "model.gguf").config.max_positions == 256


def test_a_config_can_be_given(tmp_path):
    source = TARGET / "gguf-q4_0"
    given = tmp_path / "given"
    given.mkdir()
    values = open_checkpoint(source).values | {"max_position_embeddings": 77}
    (given / "config.json").write_text(json.dumps(values))
    (given / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    made = open_checkpoint(source / "model.gguf", config=given)
    assert made.config.max_positions == 77 and made.config.eos_token_ids == (2, 7, 9)
    assert made.tokenizer_path == given
    with pytest.raises(PlanishError, match="config: is for a GGUF file"):
        open_checkpoint(TARGET / "ct-w8a8", config=given)
    with pytest.raises(PlanishError, match=r"nowhere/config.json: "):
        open_checkpoint(source / "model.gguf", config=tmp_path / "nowhere")


def test_factors_of_rope_are_llama_3s_or_longropes(tmp_path):
    file = read_gguf(TARGET / "gguf-q4_0" / "model.gguf")
    for low, kind in ((1.0, "llama3"), (3.0, "longrope")):
        scaling = Llama3(
            factor=8.0,
            low_freq_factor=low,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        )
        factors = rope_factors(Rope(theta=10000.0, dim=32, scaling=scaling))
        tensor = GgufTensor(type="F32", shape=(16,), data=factors.view(np.uint8))
        values = rebuild_config(replace(file, tensors=file.tensors | {FACTORS: tensor}))
        assert values["rope_scaling"]["rope_type"] == kind
    bad = replace(tensor, data=np.zeros(64, np.uint8))
    with pytest.raises(PlanishError, match="rope_freqs.weight: bad value; expected finite"):
        rebuild_config(replace(file, tensors=file.tensors | {FACTORS: bad}))


def test_each_tensor_has_a_scheme_by_its_own_type():
    schemes = {str(s) for s in open_checkpoint(TARGET / "gguf-q4_k_m").schemes().values()}
    assert schemes == {"int4 g=32 offset", "int8 g=16"}


def test_a_dead_group_keeps_its_weights():
    """Scale 0 means zeros whatever the codes are, and with a minimum that minimum."""
    q4_0 = np.zeros((1, 1, 18), np.uint8)
    found = TYPES["Q4_0"].decode(q4_0)
    assert found.scale.item() == 1 and (found.codes == 8).all()
    q4_1 = np.full((1, 1, 20), 0xFF, np.uint8)
    q4_1[0, 0, :4] = np.array([0, 3], "<f2").view(np.uint8)
    found = TYPES["Q4_1"].decode(q4_1)
    assert found.scale.item() == 1 and (found.codes == 0).all() and found.offset.item() == 3


def test_q4_1_is_a_product_and_a_minimum():
    block = np.zeros((1, 1, 20), np.uint8)
    block[0, 0, :4] = np.array([0.5, -3], "<f2").view(np.uint8)
    block[0, 0, 4] = 0x72  # weight 0 has code 2, weight 16 code 7
    found = TYPES["Q4_1"].decode(block)
    assert found.scale.item() == 0.5 and found.offset.item() == -3
    assert found.codes[0, 0] == 2 and found.codes[0, 16] == 7


BAD = {
    "not one": ({"counts": (0, 0)}, None),
    "tensor count": ({"counts": (2**63, 0)}, "expected tensors within"),
    "key count": ({"counts": (0, 2**62)}, "expected keys within"),
    "long string": (
        {"keys": [struct.pack("<Q", 2**63)], "counts": (0, 1)},
        "truncated or damaged; expected keys within",
    ),
    "long value": (
        {"keys": [key("a.long.name", 8, struct.pack("<Q", 2**63))]},
        "expected a string within",
    ),
    "array count": (
        {"keys": [key("a.long.name", 9, struct.pack("<IQ", 4, 2**61))]},
        "expected numbers within",
    ),
    "array of arrays": (
        {"keys": [key("a.long.name", 9, struct.pack("<IQ", 9, 1))]},
        "a.long.name: has an unknown type; found 9",
    ),
    "unknown type": ({"keys": [key("a.long.name", 77, b"12345")]}, "unknown type; found 77"),
    "twice": ({"keys": [key("a.name", 0, b"1")] * 2}, "a.name: is a duplicate key"),
    "alignment": (
        {"keys": [key("general.alignment", 4, struct.pack("<I", 3))]},
        "general.alignment: bad value; expected a power of two",
    ),
    "axes": ({"tensors": [tensor("a", (1,) * 9, 0, 0)]}, "a: wrong shape; expected 1..4 axes"),
    "outside": ({"tensors": [tensor("a", (32,), 0, 0)]}, "a: is out of place"),
    "absurd": ({"tensors": [tensor("a", (2**40, 2**23), 0, 0)]}, "a: is out of place"),
    "overlap": (
        {"tensors": [tensor("a", (32,), 0, 0), tensor("b", (32,), 0, 32)], "data": b"0" * 256},
        "b: is out of place; expected 128 bytes in the file, after a",
    ),
    "not aligned": ({"tensors": [tensor("a", (32,), 0, 4)], "data": b"0" * 256}, "out of place"),
    "block": ({"tensors": [tensor("a", (40,), 2, 0)], "data": b"0" * 256}, "a multiple of 32"),
    "Q5_K": ({"tensors": [tensor("a", (256,), 13, 0)], "data": b"0" * 256}, "Q4_K.*found Q5_K"),
    "no type": ({"tensors": [tensor("a", (256,), 99, 0)], "data": b"0" * 256}, "found type 99"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_refused_in_one_line(tmp_path, name):
    what, message = BAD[name]
    path = write(tmp_path / "model.gguf", **what)
    if message is None:
        assert read_gguf(path).tensors == {}
        message = "general.architecture: cannot be read; expected one of llama"
    with pytest.raises(PlanishError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()


def test_a_big_endian_or_old_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    for version in (1, 3 << 24):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
        with pytest.raises(PlanishError, match="expected version 2 or 3, little endian"):
            open_checkpoint(path)


def split(target, count=2, **changes):
    """Write the sample's tensors as the parts of a split file."""
    file = read_gguf(TARGET / "gguf-q4_0" / "model.gguf")
    names = list(file.tensors)
    for number in range(count):
        keys = {"split.no": number, "split.count": count} | changes.get(f"part{number}", {})
        keys |= file.keys if number == 0 else {}
        chosen = {name: file.tensors[name] for name in names[number::count]}
        parts = {
            name: Part(type=one.type, shape=one.shape, read=partial(np.asarray, one.data))
            for name, one in chosen.items()
        }
        path = target / f"model-{number + 1:05d}-of-{count:05d}.gguf"
        with path.open("wb") as out:
            write_container(out, keys, parts)
    return target


@pytest.fixture(params=[path.name for path in SAMPLES])
def tied(request, tmp_path):
    """A sample whose embedding, which has codes, is the head, too."""
    return write_tied(TARGET / request.param / "model.gguf", tmp_path / "tied.gguf")


@pytest.mark.matrix(4)
@pytest.mark.parametrize("native", [False, True], ids=["xla", "native"])
def test_a_tied_head_has_the_codes_of_the_embedding(tied, native, request):
    checkpoint = open_checkpoint(tied)
    weights = load_weights(checkpoint)
    assert checkpoint.config.tie_embeddings and weights.head.scheme is not None
    assert np.array_equal(dequantize(weights.head.weight), dequantize(weights.embed))
    if native:
        request.getfixturevalue("kernels")
    expected = forward(checkpoint.config, weights, TOKENS)
    found = Engine(checkpoint, native).forward(TOKENS)
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)


def test_a_file_whose_only_codes_are_the_embedding_s_is_in_floats(tied):
    checkpoint, file = open_checkpoint(tied), read_gguf(tied)
    kept = {"token_embd.weight": file.tensors["token_embd.weight"]}
    config = checkpoint.config
    heads = config.num_heads, config.num_kv_heads
    _, declared, _ = translate_gguf(replace(file, tensors=kept), heads, tied=True)
    assert declared is None


def test_a_file_is_parsed_once_while_its_model_is_open(tmp_path, monkeypatch):
    path, parsed = tmp_path / "model.gguf", []
    real = gguf._read_parts
    monkeypatch.setattr(gguf, "_read_parts", lambda path: parsed.append(path) or real(path))
    shutil.copy(TARGET / "gguf-q4_0" / "model.gguf", path)
    checkpoint = open_checkpoint(path)
    load_tokenizer(path, checkpoint.config)
    gguf_chat_template(path)
    assert parsed == [path]
    shutil.copy(TARGET / "gguf-q4_k_m" / "model.gguf", path)
    assert open_checkpoint(path).config.hidden_size != checkpoint.config.hidden_size
    assert parsed == [path, path]
    del checkpoint
    open_checkpoint(path)
    assert parsed == [path] * 3


@pytest.mark.parametrize("count", [2, 3])
def test_a_split_file_is_read_as_one(tmp_path, count):
    made = open_checkpoint(split(tmp_path, count))
    expected = open_checkpoint(TARGET / "gguf-q4_0")
    assert made.entries.keys() == expected.entries.keys()
    found, wanted = (forward(c.config, load_weights(c), TOKENS) for c in (made, expected))
    assert np.array_equal(found, wanted)
    assert load_tokenizer(tmp_path, made.config).encode("hello")[0] == 1


def test_parts_that_are_missing_or_mixed_up_are_refused(tmp_path):
    path = split(tmp_path)
    with pytest.raises(PlanishError, match="is a part; expected the first of 2 parts"):
        open_checkpoint(path / "model-00002-of-00002.gguf")
    split(path, part1={"split.no": 5})
    with pytest.raises(PlanishError, match="split.no: bad value; expected part 1 of 2, found 5"):
        open_checkpoint(path)
    shutil.copy(path / "model-00001-of-00002.gguf", path / "model-00002-of-00002.gguf")
    with pytest.raises(PlanishError, match="split.no: bad value"):
        open_checkpoint(path)
    (path / "model-00002-of-00002.gguf").unlink()
    with pytest.raises(PlanishError, match="00002-of-00002.gguf: "):
        open_checkpoint(path)


def test_several_files_are_refused(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / f"{name}.gguf")
    with pytest.raises(PlanishError, match="has several; expected one GGUF file"):
        open_checkpoint(tmp_path)


def test_mutated_headers_give_a_model_or_a_typed_error(tmp_path):
    raw, refused = (TARGET / "gguf-q4_0" / "model.gguf").read_bytes(), 0
    path = tmp_path / "model.gguf"
    for seed in range(200):
        rng, changed = np.random.default_rng(seed), bytearray(raw)
        if seed % 10 == 0:
            changed = changed[: rng.integers(len(changed))]
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(min(len(changed), 12_000)))
            changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            checkpoint = open_checkpoint(path)
            load_tokenizer(path, checkpoint.config)
            with np.errstate(all="ignore"):
                load_weights(checkpoint).blocks[0]
        except PlanishError as problem:
            assert str(problem).isprintable(), seed  # noqa: PT017  (it may also load)
            refused += 1
    assert refused > 20
