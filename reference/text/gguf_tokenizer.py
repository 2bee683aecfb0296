"""tokenizer.json, and what tokenizer_config.json says, from the keys of a GGUF file.

    model    llama     SentencePiece's BPE: merges follow from the scores, bytes as <0x41>
             gpt2      byte-level BPE: merges are given, `pre` names how text is split before
    tokens   their types: 2 unknown, 3 control, 4 added by the user, 5 unused, 6 a byte

Source: llama.cpp, llama-vocab.cpp for the expressions of `pre`; transformers'
SentencePieceExtractor for the merges.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planish.reference.errors import TokenizerError
from planish.reference.gguf import GgufFile, read_gguf

SPACE = "\u2581"
UNKNOWN, CONTROL, ADDED, UNUSED, BYTE = 2, 3, 4, 5, 6
EXCLUDED = (UNKNOWN, CONTROL, BYTE)  # from merges
SPECIAL = {"bos": "bos", "eos": "eos", "eot": "eot", "unknown": "unk", "padding": "pad"}
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {"llama-bpe": WORDS + r"\p{N}{1,3}" + REST, "qwen2": WORDS + r"\p{N}" + REST}
DIGITS = ("smollm", "starcoder", "refact", "command-r")  # each digit alone, then as gpt-2
PLAIN = ("gpt-2", "default")
PRE_NAMES = (*SPLITS, *DIGITS, *PLAIN)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def gguf_tokenizer(path: Path) -> bytes:
    """The bytes of a tokenizer.json; TokenizerError for a tokenizer that is not known."""
    return json.dumps(rebuild_tokenizer(read_gguf(path))).encode()


def rebuild_tokenizer(file: GgufFile) -> dict[str, Any]:
    """The values of a tokenizer.json from the keys; TokenizerError as above."""
    kind = file.keys.get("tokenizer.ggml.model")
    if kind not in ("llama", "gpt2"):
        raise _unknown(file, "tokenizer.ggml.model", "llama or gpt2", kind)
    tokens = _strings(file, "tokenizer.ggml.tokens")
    vocabulary = {token: number for number, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise _unknown(file, "tokenizer.ggml.tokens", "different tokens", "one twice")
    values = _sentencepiece(file, tokens) if kind == "llama" else _byte_level(file)
    unused = _unused(file, tokens)
    values["model"]["vocab"] = {text: n for text, n in vocabulary.items() if n not in unused}
    values |= {"version": "1.0", "added_tokens": _added_tokens(file, tokens)}
    values["post_processor"] = _beginning(file, tokens, default=kind == "llama")
    return values


def _unused(file: GgufFile, tokens: list[str]) -> set[int]:
    """The ids that converters fill up with [PAD7] and the like: no text has such a token."""
    types = enumerate(_types(file, len(tokens)))
    return {n for n, kind in types if kind == UNUSED and tokens[n] == filler(n)}


def filler(number: int) -> str:
    """What llama.cpp's converter writes for an id without a token."""
    return f"[PAD{number}]"


def gguf_chat_template(path: Path) -> dict[str, Any]:
    """The chat template and the special tokens that it names, as tokenizer_config.json has them.

    chat_template (a list of names and templates if there are several), bos_token, eos_token,
    eot_token (the end of a turn), unk_token, pad_token: those that the file has. TokenizerError for
    a value of another type, or a token outside the vocabulary.
    """
    file = read_gguf(path)
    templates = _templates(file)
    found: dict[str, Any] = {} if not templates else {"chat_template": templates["default"]}
    if len(templates) > 1:
        named = [{"name": name, "template": text} for name, text in templates.items()]
        found["chat_template"] = named
    for kind, name in SPECIAL.items():
        number = file.keys.get(f"tokenizer.ggml.{kind}_token_id")
        if number is not None:
            tokens = _strings(file, "tokenizer.ggml.tokens")
            found[f"{name}_token"] = tokens[_token_id(file, kind, len(tokens))]
    return found


def _templates(file: GgufFile) -> dict[str, str]:
    """Templates by name; the plain one is `default`, and is there if there is any."""
    key, found = "tokenizer.chat_template", dict[str, str]()
    for name, text in file.keys.items():
        if name != key and not name.startswith(f"{key}."):
            continue
        if not isinstance(text, str):
            raise _unknown(file, name, "a string", type(text).__name__)
        found[name.removeprefix(key).removeprefix(".") or "default"] = text
    return {"default": next(iter(found.values())), **found} if found else {}


def _token_id(file: GgufFile, kind: str, count: int) -> int:
    """The id of a special token; TokenizerError for one outside the vocabulary."""
    name = f"tokenizer.ggml.{kind}_token_id"
    number = file.keys.get(name)
    if type(number) is not int or not 0 <= number < count:
        raise _unknown(file, name, f"0..{count - 1}", number)
    return number


def _unknown(file: GgufFile, name: str, expected: object, found: object) -> TokenizerError:
    problem = "cannot be read; put the model's tokenizer.json beside the file"
    return TokenizerError(problem, path=file.path, name=name, expected=expected, found=repr(found))


def _strings(file: GgufFile, name: str) -> list[str]:
    found = file.keys.get(name)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise _unknown(file, name, "a list of strings", type(found).__name__)
    return found


def _types(file: GgufFile, count: int) -> list[Any]:
    found = file.keys.get("tokenizer.ggml.token_type", [1] * count)
    if not isinstance(found, list) or len(found) != count:
        raise _unknown(file, "tokenizer.ggml.token_type", f"{count} types", type(found).__name__)
    return found


def _added_tokens(file: GgufFile, tokens: list[str]) -> list[dict[str, Any]]:
    """Unknown, control and user-defined tokens."""
    off = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    types = zip(tokens, _types(file, len(tokens)), strict=True)
    return [
        {"id": number, "content": token, "special": kind != ADDED, **off}
        for number, (token, kind) in enumerate(types)
        if kind in (UNKNOWN, CONTROL, ADDED)
    ]


def _beginning(file: GgufFile, tokens: list[str], default: bool) -> dict[str, Any] | None:
    """The template that puts the token of the beginning before a text, if the file says so."""
    if file.keys.get("tokenizer.ggml.add_bos_token", default) is not True:
        return None
    number = _token_id(file, "bos", len(tokens))
    first, text = {"SpecialToken": {"id": tokens[number], "type_id": 0}}, tokens[number]
    return {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"],
        "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
    }


def _sentencepiece(file: GgufFile, tokens: list[str]) -> dict[str, Any]:
    """BPE with spaces as a character, and bytes for what is not in the vocabulary."""
    scores = file.keys.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _unknown(
            file, "tokenizer.ggml.scores", f"{len(tokens)} scores", type(scores).__name__
        )
    types = _types(file, len(tokens))
    prefix = file.keys.get("tokenizer.ggml.add_space_prefix", True) is True
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    first = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    steps = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    unknown = next(
        (token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None
    )
    model = {"type": "BPE", "unk_token": unknown, "fuse_unk": True, "byte_fallback": True}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*first, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {**model, "merges": _merges(tokens, types, scores)},
    }


def _merges(tokens: list[str], types: list[Any], scores: list[Any]) -> list[list[str]]:
    """Pairs of tokens that form a token, that of the best score first."""
    plain = {token: n for n, token in enumerate(tokens) if types[n] not in EXCLUDED}
    found = []
    for token, number in plain.items():
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [pair for pair in pairs if pair[0] in plain and pair[1] in plain]
        known.sort(key=lambda pair: (plain[pair[0]], plain[pair[1]]))
        found += [(-scores[number], place, pair) for place, pair in enumerate(known)]
    return [list(pair) for _, _, pair in sorted(found, key=lambda one: one[0])]


def _byte_level(file: GgufFile) -> dict[str, Any]:
    """Byte-level BPE; how text is split before is known for a few names of `pre`."""
    pre = file.keys.get("tokenizer.ggml.pre", "default")
    merges = [pair.split(" ") for pair in _strings(file, "tokenizer.ggml.merges")]
    if any(len(pair) != 2 for pair in merges):
        raise _unknown(file, "tokenizer.ggml.merges", "pairs", "others")
    if pre not in PRE_NAMES:
        raise _unknown(file, "tokenizer.ggml.pre", f"one of {', '.join(PRE_NAMES)}", pre)
    return {
        **split_before(str(pre)),
        "decoder": {**BYTES, "use_regex": True},
        "model": {"type": "BPE", "merges": merges, "ignore_merges": pre == "llama-bpe"},
    }


def split_before(pre: str) -> dict[str, Any]:
    """The normalizer and the pre-tokenizer that a name of `pre` means, one of PRE_NAMES."""
    if pre in SPLITS:
        split = {"type": "Split", "pattern": {"Regex": SPLITS[pre]}, "invert": False}
        steps = [{**split, "behavior": "Isolated"}, {**BYTES, "use_regex": False}]
    elif pre in DIGITS:
        steps = [{"type": "Digits", "individual_digits": True}, {**BYTES, "use_regex": True}]
    else:
        steps = [{**BYTES, "use_regex": True}]
    return {
        "normalizer": {"type": "NFC"} if pre == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
    }
