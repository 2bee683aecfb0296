"""A model of transformers as a subject: its float32 forward pass, judged block by block.

    blocks    every decoder layer is given the reference's hidden states, by hooks, so errors cannot
              add up and the layer that fails is the wrong one
    model     logits of the prompt, without hooks

The model runs as its authors wrote it. torch and transformers are the extra `oracle`; they are
imported only when a model of transformers is judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from planish.compare.subject import Subject
from planish.reference.errors import PlanishError
from planish.reference.files.load import Checkpoint

REMEDY = "the extra `oracle`: pip install 'planish[oracle]'"


class SubjectError(PlanishError):
    """A subject that cannot be judged: it is not installed, or cannot open this model."""


def hugging_face(checkpoint: Checkpoint) -> Subject:
    """The checkpoint as transformers runs it, in float32 and with eager attention.

    Raises SubjectError where transformers or torch is missing, where the checkpoint is quantized,
    or where transformers cannot open it.
    """
    if checkpoint.quantization is not None:
        problem = "is quantized, and transformers is judged on float models only"
        raise SubjectError(problem, path=checkpoint.path, expected="a float checkpoint")
    try:
        import torch
        import transformers
    except ImportError as error:
        raise SubjectError("is not installed", name=error.name, expected=REMEDY) from error
    model = HuggingFaceModel(open_model(checkpoint, transformers, torch.float32))
    form = f"transformers {transformers.__version__}, torch {torch.__version__}, float32"
    return Subject(name="transformers", form=form, model=model, blocks=model)


def open_model(checkpoint: Checkpoint, transformers: Any, dtype: Any) -> Any:
    """The model in eval mode, from the directory only."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.path,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        words = f"{type(error).__name__}: {error}"
        problem = "cannot be opened by transformers"
        raise SubjectError(problem, path=checkpoint.path, found=words) from error
    return model.eval()


class HuggingFaceModel:
    """A causal language model of transformers, and its decoder layers."""

    def __init__(self, model: Any):
        import torch

        self.torch, self.model = torch, model
        count = model.config.get_text_config().num_hidden_layers
        lists = (m for m in model.modules() if isinstance(m, torch.nn.ModuleList))
        found = [layers for layers in lists if len(layers) == count]
        if not found:
            raise SubjectError("has no list of layers", name=type(model).__name__, expected=count)
        self.layers = list(found[0])  # the outermost

    def forward(self, tokens: Sequence[int]) -> np.ndarray:
        """Logits [T, V]."""
        with self.torch.no_grad():
            ids = self.torch.tensor([list(tokens)])
            output = self.model(input_ids=ids, use_cache=False)
            logits: np.ndarray = output.logits[0].float().numpy()
            return logits

    def blocks(self, tokens: Sequence[int], hidden: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The embeddings, then layer i's output for hidden[i], [T, D] each, in one pass."""
        seen: list[np.ndarray] = []
        with ExitStack() as hooks:
            for number, (layer, x) in enumerate(zip(self.layers, hidden, strict=True)):
                first = seen if number == 0 else None
                before = layer.register_forward_pre_hook(self.make_feed(x, first), with_kwargs=True)
                after = layer.register_forward_hook(lambda _m, _a, y: seen.append(to_array(y)))
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            self.forward(tokens)
        return seen

    def make_feed(self, x: np.ndarray, seen: list[np.ndarray] | None) -> Callable[..., Any]:
        """A hook that replaces a layer's hidden states, and records the original ones in `seen`."""
        other = self.torch.from_numpy(np.ascontiguousarray(x)[None])

        def hook(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if seen is not None:
                seen.append(to_array(arguments[0] if arguments else named["hidden_states"]))
            if arguments:
                return (other, *arguments[1:]), named
            return arguments, {**named, "hidden_states": other}

        return hook


def to_array(output: Any) -> np.ndarray:
    """Hidden states [T, D] of a layer's output, which may be a tuple."""
    tensor = output[0] if isinstance(output, tuple) else output
    hidden: np.ndarray = tensor[0].detach().float().numpy().copy()
    return hidden
