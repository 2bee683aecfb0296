"""The fields that are refused, and the values with which each asks for nothing.

They would change the answer, and planish does not do them. What is on no list is ignored: OpenAI's
metadata, store, user, service_tier, and names that nobody knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

REFUSED: Mapping[str, Collection[Any]] = {
    # of vLLM
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "include_stop_str_in_output": (False,),
    "prompt_logprobs": (),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "truncate_prompt_tokens": (),
    "logits_processors": ([],),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "stop_regex": (),
    # of llama.cpp
    "grammar": ("",),
    "json_schema": (),
    "typical_p": (1,),
    "top_n_sigma": (-1, 0),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "n_probs": (0,),
}

REFUSED_CHAT: Mapping[str, Collection[Any]] = {
    "tool_choice": ("auto", "none"),
    "functions": ([],),
    "function_call": ("auto", "none"),
    "audio": (),
    "modalities": (["text"],),
    "web_search_options": (),
    "chat_template": (),  # templates of clients are never rendered
    "add_special_tokens": (False,),
    "echo": (False,),
}

REFUSED_COMPLETION: Mapping[str, Collection[Any]] = {
    "suffix": ("",),
    "messages": (),
    "prompt_embeds": (),
}
