"""planish from Python: quantize a model, load one, and generate text.

    import planish

    planish.quantize("pocket/model", "pocket-w4a8", recipe="W4A8", group_size=32)
    model = planish.load("pocket-w4a8")
    for piece in model.generate("def add(a, b):", max_new_tokens=32, stream=True):
        print(piece, end="", flush=True)

All errors are planish.PlanishError, each one line. Notices (what was tolerated, that kernels were
compiled) go to the logger "planish". jax's configuration is not changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, overload

from planish import auto
from planish.calibration import announce_estimate, calibration_samples
from planish.exporting import (
    PROGRAM,
    check_export,
    export_request,
    finish_export,
    intermediate_layout,
    open_writer,
)
from planish.opening import ENGINES, KERNELS, choose_attention
from planish.program_cache import compilation_cache
from planish.reference.engine import Engine as ReferenceEngine
from planish.reference.errors import PlanishError, RecipeError
from planish.reference.files.export.convert import check_request as check_conversion_request
from planish.reference.files.export.convert import convert as convert_checkpoint
from planish.reference.files.export.protocol import Request
from planish.reference.files.load import Checkpoint, open_checkpoint
from planish.reference.files.partial import Partial
from planish.reference.model.config import ATTENTIONS, KV_CACHES
from planish.reference.progress import no_progress
from planish.reference.quantize.ahead import AHEAD
from planish.reference.quantize.checkpoint import check_request, quantize_checkpoint
from planish.reference.quantize.recipe import needs_calibration
from planish.reference.quantize.recipe import recipe as recipe_named
from planish.reference.quantize.runtime import NUMPY, Runtime
from planish.reference.text.chat import Conversation, Message, encode_chat, unite_ends
from planish.reference.text.chat_template import load_chat_template
from planish.reference.text.generate import Stop, text_stream
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer, load_tokenizer
from planish.terminal.sizes import parse_bytes

PathLike = str | Path  # a file or a directory
OPTIONS = {"max_new_tokens", "stop", "ignore_eos", *(one.name for one in fields(Sampling))}


class Model:
    """A loaded model; `engine` has forward, losses and generate on token ids."""

    def __init__(
        self,
        engine: Any,
        tokenizer: Tokenizer,
        path: PathLike | None = None,
        config: PathLike | None = None,
    ):
        self.engine, self.tokenizer, self.config = engine, tokenizer, config
        self.path = tokenizer.path.parent if path is None else path

    @overload
    def generate(self, prompt: str, *, stream: Literal[False] = False, **options: Any) -> str: ...

    @overload
    def generate(self, prompt: str, *, stream: Literal[True], **options: Any) -> Iterator[str]: ...

    def generate(self, prompt: str, *, stream: bool = False, **options: Any) -> Any:
        """Continue a prompt: the new text or, with `stream`, its pieces as they are generated.

        options: max_new_tokens (128), temperature (0, greedy), top_k (0, all), top_p (1, all),
        min_p (0, all), seed (0), repetition_penalty (1), presence_penalty (0), frequency_penalty
        (0), logit_bias ({id: bias}), stop (strings that end the text), ignore_eos (False). Raises
        PromptError for a prompt that is empty or too long, SamplingError for an option outside its
        range.
        """
        pieces = self._pieces(self.tokenizer.encode(prompt), *_options(options))
        return pieces if stream else "".join(pieces)

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[False] = False, **options: Any
    ) -> str: ...

    @overload
    def chat(
        self, messages: Sequence[Message], *, stream: Literal[True], **options: Any
    ) -> Iterator[str]: ...

    def chat(self, messages: Sequence[Message], *, stream: bool = False, **options: Any) -> Any:
        """The assistant's next message, by the model's chat template.

        messages: {"role": "user", "content": "..."}, and earlier ones. options: as of `generate`.
        Raises ChatError for a model without a template, and a conversation that it refuses.
        """
        template = load_chat_template(self.path, config=self.config)
        prompt = encode_chat(self.tokenizer, template, Conversation(messages=messages))
        pieces = self._pieces(prompt, *_options(options))
        return pieces if stream else "".join(pieces)

    def _pieces(self, prompt: list[int], stop: Stop, sampling: Sampling) -> Iterator[str]:
        text = text_stream(self.tokenizer, prompt, stop)
        for _, token in self.engine.generate([prompt], stop, sampling):
            yield text.push(token)
            if text.stopped:
                return
        yield text.finish()


def _options(given: dict[str, Any]) -> tuple[Stop, Sampling]:
    """Split the options of `generate`; TypeError for an unknown one."""
    if unknown := given.keys() - OPTIONS:
        expected = ", ".join(sorted(OPTIONS))
        raise TypeError(f"generate() has no {', '.join(sorted(unknown))}; it has {expected}")
    most, stop = given.pop("max_new_tokens", 128), given.pop("stop", ())
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    if isinstance(bias := given.get("logit_bias", ()), Mapping):
        given["logit_bias"] = tuple(bias.items())
    return Stop(most, strings, given.pop("ignore_eos", False)), Sampling(**given)


def load(
    model: PathLike,
    *,
    engine: str = "fast",
    kernels: str = "auto",
    attention: str | None = None,
    kv_cache: str | None = None,
    allow_links: bool = False,
    config: PathLike | None = None,
) -> Model:
    """Open a Hugging Face directory, float or quantized by planish.

    engine: "fast" (JAX and native kernels) or "reference" (NumPy). kernels, for the fast engine:
    "auto", "native", "xla" or an instruction set. attention: "float" or "int8",
    and kv_cache: "float32", "int8" or "int8_static", if not as the model says. allow_links:
    accept files that are links out of the directory. config: for a GGUF file, a directory whose
    config.json and tokenizer.json replace the file's keys. Raises PlanishError.
    """
    _require("engine", engine, ENGINES)
    _require("attention", attention, (None, *ATTENTIONS))
    _require("kv_cache", kv_cache, (None, *KV_CACHES))
    checkpoint = choose_attention(open_checkpoint(model, allow_links, config), attention, kv_cache)
    tokenizer = load_tokenizer(checkpoint.tokenizer_path, checkpoint.config)
    ends = unite_ends(checkpoint.config, tokenizer, checkpoint.tokenizer_path)
    checkpoint = replace(checkpoint, config=ends)
    opened = ReferenceEngine(checkpoint) if engine == "reference" else _fast(checkpoint, kernels)
    return Model(opened, tokenizer, model, config)


def _fast(checkpoint: Checkpoint, kernels: str) -> Any:
    from planish.fast.session.engine import Engine

    return Engine(checkpoint, _native(kernels))


def _native(kernels: str) -> bool:
    """Whether to use the native kernels; compiles them on first use."""
    from planish.fast.native.library import choose_kernels

    _require("kernels", kernels, KERNELS)
    cache = compilation_cache(None)
    return choose_kernels(kernels, cache and cache / "kernels")


def quantize(  # noqa: PLR0913  (keywords, as the command's flags)
    model: PathLike,
    out: PathLike,
    *,
    recipe: str | None = None,
    calibration: PathLike | None = None,
    samples: int | None = None,
    sequence_length: int | None = None,
    sample_length: int | None = None,
    engine: str = "fast",
    kernels: str = "auto",
    layout: str | None = None,
    format: str = "planish",  # noqa: A002  (the flag's name)
    overwrite: bool = False,
    resume: bool = False,
    memory_budget: str | int | None = None,
    **changes: Any,
) -> dict[str, Any] | None:
    """Quantize a float model to 8 or 4 bits; writes the directory `out`, whole or not at all.

    recipe: float, W8A8, O1, O2, O3, naive, W8A16, W4A16 or W4A8, or with its changes in one
    word, as W4A8-g32-alpha0.5. changes: scheme ({pattern: "W8A16"} or the flag's text), method,
    group_size, rule, scale_dtype, activation, alpha, smooth_outputs, clip_inputs, lm_head, ignore,
    attention, kv_cache, as the flags of `planish quantize`. calibration: a UTF-8 text file, or
    FILE.jsonl with a field `text`, for recipes that need one (default: the embedded text), cut
    into `samples` (512) of `sequence_length` (512) tokens; sample_length is its old name, and seed,
    one of the changes, draws the samples. engine: what runs them through the model, "fast"
    (JAX, with native kernels according to `kernels`) or "reference" (NumPy). Raises PlanishError;
    replaces an existing model only with `overwrite`. resume: go on after the last finished block of
    a run that was stopped. memory_budget: bytes ("2G") of the samples' hidden states in memory.
    layout: of planish's format, "tiles" (default) or "canonical". format: as in `convert`.

    method="auto" searches for the recipe (docs/auto.md): tolerance, metric, budget, validation,
    validation_tokens and task are its flags' values, and the recipe is W4A16 if none is given. It
    returns the report that the command writes beside the model; `within` says whether the tolerance
    holds. Other methods return None.
    """
    _require("engine", engine, ENGINES)
    length = sample_length if sequence_length is None else sequence_length
    if changes.get("method") == "auto":
        given = {"recipe": recipe, "calibration": calibration, "samples": samples}
        given |= {"sequence_length": length, "engine": engine, "kernels": kernels}
        given |= {"layout": layout or "tiles", "overwrite": overwrite}
        given |= {"memory_budget": memory_budget}
        for name, found in (("resume", resume), ("format", format != "planish")):
            if found:
                raise PlanishError('is for one recipe, not for method="auto"', name=name)
        return _search(model, out, {**given, **changes, "method": None})
    if recipe is None:
        raise RecipeError("is missing", name="recipe", expected="W8A8, W4A16, ...")
    chosen = recipe_named(recipe, **_rename_changes(changes))
    checkpoint = open_checkpoint(model)
    layout = intermediate_layout(format, layout)
    check_request(checkpoint, chosen, layout)
    request = export_request(format, overwrite)
    check_export(checkpoint, chosen, request)
    writer = open_writer(out, model, request, Partial(out, resume, PROGRAM))
    cut, runtime = None, NUMPY
    if needs_calibration(chosen):
        seed = changes.get("seed")
        cut = calibration_samples(checkpoint, calibration, samples, length, seed=seed)
        runtime = NUMPY if engine == "reference" else _runtime(kernels)
    budget = parse_bytes(memory_budget, "memory_budget")
    runtime = replace(runtime, memory_budget=budget, ahead=AHEAD)
    runtime.check_methods(chosen)
    with writer:
        announce_estimate(checkpoint, chosen, cut, runtime)
        quantize_checkpoint(checkpoint, writer, chosen, cut, layout, runtime)
        finish_export(writer, out, request)
    return None


def convert(  # noqa: PLR0913  (keywords, as the command's flags)
    model: PathLike,
    out: PathLike,
    *,
    format: str,  # noqa: A002  (the flag's name)
    dtype: str | None = None,
    layout: str | None = None,
    overwrite: bool = False,
    allow_links: bool = False,
    config: PathLike | None = None,
) -> None:
    """Write a model in another format, without changing a code or a scale.

    format: "planish", "compressed-tensors", "float" (dequantized) or another of `planish convert
    --help`. dtype: of float tensors, "float32", "float16" or "bfloat16"; None: as they are. layout:
    of planish's codes, "tiles" or "canonical". config: for a GGUF file, as in `load`. Raises
    PlanishError for a linear that the format cannot hold, naming the nearest that can, before
    anything is written.
    """
    request = Request(
        format=format, dtype=dtype, layout=layout, overwrite=overwrite, program=PROGRAM
    )
    check_conversion_request(request)
    convert_checkpoint(open_checkpoint(model, allow_links, config), out, request)


def _search(model: PathLike, out: PathLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """The search of method="auto", without its table."""
    values = {key: value for key, value in given.items() if value is not None}
    if chosen := [key for key in values if key in auto.CHOSEN]:
        raise PlanishError(auto.CHOOSES, name=chosen[0])
    known = {one.name for one in fields(auto.Request)}
    if unknown := values.keys() - known:
        raise TypeError(f"quantize() has no {', '.join(sorted(unknown))}")
    if "ignore" in values:
        values["ignore"] = _patterns(values["ignore"])
    _require("kernels", values["kernels"], KERNELS)
    request = auto.Request(model=model, out=out, **values)
    return auto.search(auto.prepare(request, open_checkpoint(model)), lambda _: None, no_progress)


def _runtime(kernels: str) -> Runtime:
    from planish.fast.quantize.runtime import fast_runtime

    return fast_runtime(_native(kernels))


def _rename_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes under recipe()'s names; a single ignore pattern becomes a tuple."""
    named = {{"lm_head": "head"}.get(key, key): value for key, value in changes.items()}
    if named.get("ignore") is not None:
        named["ignore"] = _patterns(named["ignore"])
    return named


def _patterns(ignore: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern, or several."""
    return (ignore,) if isinstance(ignore, str) else tuple(ignore)


def _require(name: str, value: object, choices: Sequence[str | None]) -> None:
    if value not in choices:
        expected = f"one of {', '.join(one for one in choices if one)}"
        raise PlanishError("unknown", name=name, expected=expected, found=repr(value))
