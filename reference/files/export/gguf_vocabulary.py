"""A tokenizer as the keys of a GGUF file, tokenizer.ggml.*: the inverse of text/gguf_tokenizer.py.

    gpt2     byte-level BPE whose text is split before as a name of `pre` says
    llama    SentencePiece's BPE: the scores of tokens give the order of the merges

The keys are read back, and both tokenizers encode some texts: if the merges or any ids differ, the
tokenizer is refused. A file cannot say how a text is cut, only name a way that readers know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from planish.reference.errors import TokenizerError, notice
from planish.reference.gguf import GgufFile, find_gguf
from planish.reference.json import read_json
from planish.reference.model.config import ModelConfig
from planish.reference.text.gguf_tokenizer import (
    ADDED,
    BYTE,
    CONTROL,
    PRE_NAMES,
    SPACE,
    UNKNOWN,
    UNUSED,
    filler,
    gguf_chat_template,
    rebuild_tokenizer,
    split_before,
)
from planish.reference.text.tokenizer import Tokenizer, read_text
from planish.reference.text.tokenizer_file import library_errors

NORMAL = 1
PREFIX = "tokenizer.ggml"
PREFERRED = ("gpt-2", *PRE_NAMES)  # of names with one meaning
READ = "byte-level BPE or SentencePiece's BPE, as the tokenizers of Llama and Qwen are"
PROBES = (
    "The quick brown fox doesn't jump over 1234567890 lazy dogs, I'LL say.",
    "  two  spaces\tand\ttabs\n\n\nnew lines \r\n  at the end  ",
    "def f(x):\n    return x**2 + 3.14e-10  # \N{EURO SIGN}5",
    "\u00dcber fa\u00e7ade e\u0301 \u65e5\u672c\u8a9e \u0420\u0443\u0441 \u0905\u0928 \U0001f642",
    "\u00bd \u00b2 x\u00b2 \u0663\u0664 \ufb01 \u3000 a\u00a0b \u200d",
)


def vocabulary_keys(tokenizer: Tokenizer) -> dict[str, Any]:
    """The keys of a tokenizer, one token for each row of the embedding.

    Raises TokenizerError for a tokenizer that cannot be said in these keys.
    """
    values = json.loads(tokenizer.inner.to_str())
    bos = _first_token(tokenizer, values)
    model = values["model"]
    if model["type"] != "BPE":
        raise refuse(tokenizer.path, "model", READ, model["type"])
    tokens, types = _tokens(tokenizer, values)
    keys = _sentencepiece(tokenizer, values, tokens, types) if _has_spaces(values) else None
    keys = keys or _byte_level(tokenizer, values)
    keys |= {f"{PREFIX}.tokens": tokens, f"{PREFIX}.token_type": types}
    keys |= _special_ids(tokenizer.config)
    keys[f"{PREFIX}.add_bos_token"] = bos
    keys[f"{PREFIX}.add_eos_token"] = False
    _check_ids(tokenizer, values, keys)
    return keys


def refuse(path: Path, name: str, expected: object, found: object) -> TokenizerError:
    """The error for a tokenizer that no keys describe."""
    problem = "cannot be written as keys of a GGUF file"
    return TokenizerError(problem, path=path, name=name, expected=expected, found=found)


def _first_token(tokenizer: Tokenizer, values: dict[str, Any]) -> bool:
    """Whether bos comes before every text; TokenizerError for any other template."""
    found = values.get("post_processor")
    steps = found["processors"] if found and found["type"] == "Sequence" else [found]
    template = next((one for one in steps if one and one["type"] != "ByteLevel"), None)
    if template is None:
        return False
    if template["type"] != "TemplateProcessing":
        raise refuse(tokenizer.path, "post_processor", "a template", template["type"])
    words = [next(iter(piece.items())) for piece in template["single"]]
    ids = [template["special_tokens"][v["id"]]["ids"] for k, v in words if k == "SpecialToken"]
    if [kind for kind, _ in words] == ["Sequence"]:
        return False
    if words[-1][0] == "Sequence" and ids == [[tokenizer.config.bos_token_id]]:
        return True
    expected = "bos and the text, or the text alone"
    raise refuse(tokenizer.path, "post_processor", expected, json.dumps(template["single"]))


def _tokens(tokenizer: Tokenizer, values: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The text and the type of each row of the embedding; tokens beyond it are left out."""
    model, rows = values["model"], tokenizer.config.vocab_size
    tokens, types = [filler(n) for n in range(rows)], [UNUSED] * rows
    for text, number in model["vocab"].items():
        byte = model["byte_fallback"] and len(text) == 6 and text.startswith("<0x")
        tokens[number], types[number] = text, BYTE if byte else NORMAL
    for token in values["added_tokens"]:
        number, kind = token["id"], CONTROL if token["special"] else ADDED
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            expected = "added tokens without lstrip, rstrip and single_word"
            raise refuse(tokenizer.path, token["content"], expected, "one of them")
        if number < rows:
            unknown = token["content"] == model["unk_token"]
            tokens[number], types[number] = token["content"], UNKNOWN if unknown else kind
    return tokens, types


def _special_ids(config: ModelConfig) -> dict[str, Any]:
    """The ids of bos, and of up to three ends: of a text, a turn, a message."""
    found = dict(zip(("eos", "eot", "eom"), config.eos_token_ids, strict=False))
    if config.bos_token_id is not None:
        found["bos"] = config.bos_token_id
    if left := config.eos_token_ids[3:]:
        notice(f"end-of-text ids: only three have keys in GGUF; not written: {left}")
    return {f"{PREFIX}.{kind}_token_id": number for kind, number in found.items()}


def chat_keys(model: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template of a model, and the ids of the tokens for the unknown and for padding.

    model: a directory or a GGUF file. keys: those of the vocabulary.
    """
    facts, tokens = _tokenizer_config(model), keys[f"{PREFIX}.tokens"]
    template = facts.get("chat_template")
    named = template if isinstance(template, list) else [{"name": "default", "template": template}]
    found: dict[str, Any] = {}
    for one in named:
        name, text = (one.get(k) if isinstance(one, dict) else None for k in ("name", "template"))
        if isinstance(name, str) and isinstance(text, str):
            ending = "" if name == "default" else f".{name}"
            found[f"tokenizer.chat_template{ending}"] = text
    for kind, role in (("unknown", "unk_token"), ("padding", "pad_token")):
        text = facts.get(role)
        text = text.get("content") if isinstance(text, dict) else text
        if text in tokens:
            found[f"{PREFIX}.{kind}_token_id"] = tokens.index(text)
    return found


def _tokenizer_config(model: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the template of chat_template.jinja if there is one."""
    if not (model / "tokenizer.json").exists() and (file := find_gguf(model)) is not None:
        return gguf_chat_template(file)
    config, template = model / "tokenizer_config.json", model / "chat_template.jinja"
    facts = read_json(config) if config.exists() else {}
    return facts | {"chat_template": read_text(template)} if template.exists() else facts


def _byte_level(tokenizer: Tokenizer, values: dict[str, Any]) -> dict[str, Any]:
    """The keys of byte-level BPE: its merges, and the name of how a text is split before."""
    before = {name: values.get(name) for name in ("normalizer", "pre_tokenizer")}
    found = (pre for pre in PREFERRED if _simplify(split_before(pre)) == _simplify(before))
    pre = next(found, None)
    if pre is None:
        expected = f"that of {', '.join(PRE_NAMES)}"
        raise refuse(tokenizer.path, "pre_tokenizer", expected, json.dumps(before))
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in _merges(values)]
    merges = [" ".join(pair) for pair in pairs]
    return {f"{PREFIX}.model": "gpt2", f"{PREFIX}.pre": pre, f"{PREFIX}.merges": merges}


def _merges(values: dict[str, Any]) -> list[Any]:
    merges: list[Any] = values["model"]["merges"]
    return merges


def _simplify(value: Any) -> Any:
    """Without what changes no id: trim_offsets, a sequence around one step, empty ones."""
    if not isinstance(value, dict):
        return value
    steps = next((value[k] for k in ("pretokenizers", "normalizers") if k in value), None)
    if steps is not None:
        found = [_simplify(step) for step in steps]
        return found[0] if len(found) == 1 else found or None
    return {k: _simplify(v) for k, v in value.items() if k != "trim_offsets"}


def _has_spaces(values: dict[str, Any]) -> bool:
    """Whether spaces are written as SentencePiece's character."""
    return SPACE in json.dumps([values["normalizer"], values["pre_tokenizer"]], ensure_ascii=False)


def _sentencepiece(
    tokenizer: Tokenizer, values: dict[str, Any], tokens: list[str], types: list[int]
) -> dict[str, Any]:
    """The keys of SentencePiece's BPE: a token's score is minus the place of its first merge.

    Characters, which no merge makes, score less than all merges; what is not text scores 0.
    """
    if not values["model"]["byte_fallback"]:
        raise refuse(tokenizer.path, "model", "byte_fallback", "none")
    order: dict[str, float] = {}
    for pair in _merges(values):
        first, second = pair if isinstance(pair, list) else pair.split(" ")
        order.setdefault(first + second, -float(len(order) + 1))
    scores = [
        order.get(text, 0.0 if kind != NORMAL else -float(len(order) + 1))
        for text, kind in zip(tokens, types, strict=True)
    ]
    prefix = "Prepend" in json.dumps(values["normalizer"]) or _prepends(values["pre_tokenizer"])
    return {
        f"{PREFIX}.model": "llama",
        f"{PREFIX}.pre": "default",
        f"{PREFIX}.scores": scores,
        f"{PREFIX}.add_space_prefix": prefix,
    }


def _prepends(step: Any) -> bool:
    """Whether a Metaspace step puts a space before a text."""
    return "prepend_scheme" in json.dumps(step) and "never" not in json.dumps(step)


def _check_ids(tokenizer: Tokenizer, values: dict[str, Any], keys: dict[str, Any]) -> None:
    """Raise TokenizerError unless a reader of the keys gets the same ids."""
    file = GgufFile(path=tokenizer.path, keys=keys, tensors={})
    made = rebuild_tokenizer(file)
    if tokenizer.moved:
        raise refuse(tokenizer.path, "added_tokens", "ids in their order", "others")
    pairs = [pair if isinstance(pair, list) else pair.split(" ") for pair in _merges(values)]
    if made["model"]["merges"] != pairs:
        expected = "those that follow from scores of tokens"
        raise refuse(tokenizer.path, "merges", expected, "others")
    with library_errors(tokenizer.path, "cannot be written as keys of a GGUF file"):
        other = tokenizers.Tokenizer.from_buffer(json.dumps(made).encode())
        for text in _probes(values, keys):
            if tokenizer.inner.encode(text).ids != other.encode(text).ids:
                expected = "a tokenizer that a reader of GGUF rebuilds"
                raise refuse(tokenizer.path, "tokenizer", expected, f"other ids for {text!r}")


def _probes(values: dict[str, Any], keys: dict[str, Any]) -> list[str]:
    """Texts on which tokenizers differ in practice, and added tokens among words."""
    added = [token["content"] for token in values["added_tokens"]]
    known = [text for text in added if text in keys[f"{PREFIX}.tokens"]]
    return [*PROBES, *(f"before {text}after  {text} {text}" for text in known[:8])]
