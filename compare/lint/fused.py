"""The rule of fused parts: vLLM merges q, k and v, and gate and up, into one linear each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from planish.compare.lint.linear import StoredLinear
from planish.compare.lint.opened import Opened
from planish.compare.lint.rules import Finding

MERGED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))
OF_VLLM = ("compressed-tensors", "gptq", "awq", "auto-round", "fp8")  # formats that it reads


def scheme_words(linear: StoredLinear) -> str:
    """The properties that parts must share, in words."""
    if linear.scheme is None:
        return linear.format
    words = [f"{linear.bits} bits", f"g={linear.group_size}" if linear.group_size > 0 else "row"]
    words += [] if linear.scheme.symmetric else ["asymmetric"]
    words += [] if linear.scheme.activation == "float" else [linear.scheme.activation]
    return " ".join(words)


def check_fused(opened: Opened, schemes: Mapping[str, str]) -> Iterator[Finding]:
    """Findings of layers whose parts differ. schemes: scheme_words by the linear's name."""
    if opened.format not in OF_VLLM:
        return
    for parts in MERGED:
        for first in [name for name in every_linear(opened, schemes) if has_last(name, parts[0])]:
            stem = first.removesuffix(parts[0])
            found = {part: words_of(opened, schemes, stem + part) for part in parts}
            found = {part: words for part, words in found.items() if words is not None}
            if len(set(found.values())) > 1:
                detail = ", ".join(f"{part} {words}" for part, words in found.items())
                yield Finding(rule="fused-schemes", where=stem.rstrip("."), detail=detail)


def every_linear(opened: Opened, schemes: Mapping[str, str]) -> list[str]:
    """The names of quantized linears and of float ones."""
    floats = [name.removesuffix(".weight") for name in opened.entries if name.endswith(".weight")]
    return list(dict.fromkeys([*schemes, *floats]))


def has_last(name: str, word: str) -> bool:
    return name.rpartition(".")[2] == word


def words_of(opened: Opened, schemes: Mapping[str, str], name: str) -> str | None:
    """The scheme of a part, float, or None if there is no such part."""
    return schemes.get(name, "float" if f"{name}.weight" in opened.entries else None)
