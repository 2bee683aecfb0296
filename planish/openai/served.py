"""What the protocol knows of the model that answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from planish.openai.errors import RequestRefused
from planish.openai.vocabulary import Vocabulary
from planish.reference.errors import PlanishError
from planish.reference.model.config import ModelConfig
from planish.reference.text.chat_template import ChatTemplate, special_tokens
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from planish.openai.grammar import Grammars

SHRINKING = 4  # how much shorter tokenizers and templates make a text, at most
DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model and how it is served.

    name         its id; aliases are accepted for it, and any name if any_model is set
    config       with the ends of text of config, generation_config and tokenizer united
    template     None for a base model
    context      positions of a request, prompt and answer; the last new token needs none
    defaults     of sampling parameters that a request leaves out
    max_tokens   new tokens of such a request, if they fit
    created      when it was opened, in seconds since 1970
    fingerprint  of weights and program: equal requests to equal fingerprints give equal answers
    """

    name: str
    config: ModelConfig
    tokenizer: Tokenizer
    context: int
    created: int
    fingerprint: str
    template: ChatTemplate | None = None
    aliases: tuple[str, ...] = ("default",)
    any_model: bool = False
    defaults: Sampling = Sampling(temperature=1.0)  # noqa: RUF009 (frozen)
    max_tokens: int = 1024

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The texts of single tokens."""
        return Vocabulary(self.tokenizer)

    @cached_property
    def special_roles(self) -> Mapping[str, str]:
        """Role -> text of the special tokens that the tokenizer names: bos_token, eos_token ..."""
        if self.template is not None:
            return self.template.special_tokens
        return special_tokens(self.tokenizer.path)

    @cached_property
    def grammars(self) -> Grammars:
        """What constrains answers. Raises ImportError without planish[constrained], and
        TokenizerError for a tokenizer that llguidance does not know."""
        from planish.openai.grammar import Grammars

        return Grammars(self.tokenizer, self.config.vocab_size, self.config.eos_token_ids)

    def warm(self) -> None:
        """Build what the first constrained request would wait for."""
        with suppress(ImportError, PlanishError):
            _ = self.grammars

    def check_model(self, name: str | None) -> None:
        """Raise RequestRefused, status 404, for the name of another model."""
        if name is None or self.any_model or name in (self.name, *self.aliases):
            return
        problem = f"the model {name!r} is not served here; served is {self.name!r}"
        raise RequestRefused(problem, status=404, param="model", code="model_not_found")

    def check_length(self, param: str, characters: int) -> None:
        """Refuse a text that no tokenizer makes short enough: to try would take seconds."""
        if characters > SHRINKING * self.context * self.vocabulary.longest:
            problem = f"{param}: {characters} characters do not fit a context of {self.context}"
            code = "context_length_exceeded"
            raise RequestRefused(f"{problem} tokens", param=param, code=code)

    def model_object(self) -> dict[str, Any]:
        """The model as /v1/models shows it, with the context and the defaults of sampling."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "planish",
            "max_model_len": self.context,
            "default_sampling": {name: getattr(self.defaults, name) for name in DEFAULTS},
        }
