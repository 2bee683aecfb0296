"""--allow_links: a model of links that leave its directory, by every verb that opens one."""

from __future__ import annotations

import pytest


@pytest.mark.matrix(6)
@pytest.mark.parametrize(
    "verb", ["inspect", "generate", "logits", "perplexity", "evaluate", "quantize"]
)
def test_a_verb_follows_links_only_where_they_are_allowed(planish, make_llama, tmp_path, verb):
    store = make_llama(max_position_embeddings=8)
    model = store.with_name("links")
    model.mkdir()
    for file in store.iterdir():
        (model / file.name).symlink_to(file)
    text = tmp_path / "text.txt"
    text.write_text("A quick fox.")
    task = tmp_path / "task.jsonl"
    task.write_text('{"text": "A fox."}')
    words = {
        "inspect": (),
        "generate": ("--prompt", "a", "--max_new_tokens", 1, "--engine", "reference"),
        "logits": ("--tokens", "1", "--out", store / "l.npy", "--engine", "reference"),
        "perplexity": ("--text", text, "--engine", "reference"),
        "evaluate": ("--task", task, "--engine", "reference"),
        "quantize": ("--recipe", "W8A8", "--out", store.with_name("q")),
    }[verb]
    assert planish(verb, "--model", model, *words).refused("links out", "--allow_links")
    assert planish(verb, "--model", model, *words, "--allow_links").code == 0
