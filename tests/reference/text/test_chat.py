"""Chat templates: as transformers renders and encodes them, and nothing worse than one line."""

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish import pocket
from planish.reference.errors import ChatError, PromptError, TokenizerError
from planish.reference.files.load import open_checkpoint
from planish.reference.text import chat, template_worker
from planish.reference.text.chat import (
    Conversation,
    control_tokens,
    encode_chat,
    encode_marked,
    render_chat,
    unite_ends,
)
from planish.reference.text.chat_template import ChatTemplate, load_chat_template
from planish.reference.text.tokenizer import load_tokenizer
from tests.gguf_files import text_key, texts_key, write

GOLDEN = Path(__file__).parents[2] / "golden" / "chat"
GIVEN = json.loads((GOLDEN / "conversations.json").read_text())
MADE = json.loads((GOLDEN / "golden.json").read_text())
NOW = datetime(2024, 7, 26, 12, 30)
LEAKED = ("gemma-2", "parts")  # a list shown as Python does, with the marks of transformers in it
HELLO = Conversation(messages=[{"role": "user", "content": "Hello"}])


def template_of(source, **special_tokens):
    return ChatTemplate(sources={"default": source}, special_tokens=special_tokens, path=Path("m"))


def conversation_of(case):
    return Conversation(**GIVEN["conversations"][case])


@pytest.fixture
def here(monkeypatch):
    """Render in this process, as the worker does in its own."""

    def start(content, path):
        return template_worker.answer(json.loads(content))

    monkeypatch.setattr(chat, "_ask", start)


def write_model(directory, family):
    """The files of a family that its tokenizer and template are read from."""
    directory.mkdir(exist_ok=True)
    facts = GIVEN["families"][family]
    vocabulary = GOLDEN / facts["tokenizer"] if "tokenizer" in facts else None
    shutil.copy(vocabulary or pocket.MODEL / "tokenizer.json", directory / "tokenizer.json")
    shutil.copy(GOLDEN / f"{family}.jinja", directory / "chat_template.jinja")
    (directory / "tokenizer_config.json").write_text(json.dumps(facts["tokenizer_config"]))
    return directory


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Family -> its tokenizer and its template."""
    config = replace(open_checkpoint(pocket.MODEL).config, vocab_size=10_000)
    root = tmp_path_factory.mktemp("families")
    paths = {name: write_model(root / name, name) for name in GIVEN["families"]}
    return {n: (load_tokenizer(p, config), load_chat_template(p)) for n, p in paths.items()}


@pytest.mark.matrix(14)
@pytest.mark.parametrize("case", GIVEN["conversations"])
@pytest.mark.parametrize("family", GIVEN["families"])
def test_a_conversation_has_the_text_and_the_ids_of_transformers(families, here, family, case):
    (tokenizer, template), golden = families[family], MADE[family][case]
    if "text" not in golden:
        words = golden.get("refusal", "cannot be rendered|leaves out the message")
        with pytest.raises(ChatError, match=words):
            render_chat(template, conversation_of(case), NOW)
        return
    assert render_chat(template, conversation_of(case), NOW) == golden["text"]
    everyone = replace(conversation_of(case), plain_roles=frozenset())
    if (family, case) != LEAKED:
        assert encode_chat(tokenizer, template, conversation_of(case), NOW) == golden["ids"]
    parsed = tokenizer.encode(render_chat(template, everyone, NOW), add_special_tokens=False)
    assert parsed == golden["parsed"]


@pytest.mark.parametrize("family", GIVEN["families"])
def test_special_tokens_in_a_users_text_are_text(families, here, family):
    tokenizer, template = families[family]
    case = "special tokens in a user's text"
    ids = encode_chat(tokenizer, template, conversation_of(case), NOW)
    assert ids == MADE[family][case]["ids"] != MADE[family][case]["parsed"]


def test_the_goldens_cover_what_chat_templates_do():
    sources = [(GOLDEN / f"{name}.jinja").read_text() for name in GIVEN["families"]]
    assert len(sources) >= 12
    for construct in ("raise_exception", "strftime_now", "tojson", "continue", "generation", "ns."):
        assert any(construct in source for source in sources), construct


def test_the_process_of_its_own_renders_the_same(families):
    for family in ("llama-3.1", "qwen2.5"):
        text = render_chat(families[family][1], conversation_of("tools"), NOW)
        assert text == MADE[family]["tools"]["text"]


NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (NESTED, "it takes more than 1 s"),
        ("{{ 'a' * 10**9 * 3 }}", "it needs too much memory|it takes more than"),
        ("{{ 9 ** (10 ** 9) }}", "it takes more than 1 s"),
        ("{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}", "more than 16777216 characters"),
    ],
)
def test_a_template_can_neither_hang_nor_fill_the_memory(monkeypatch, source, problem):
    monkeypatch.setattr(chat, "SECONDS", 1)
    with pytest.raises(ChatError, match=f"chat_template: cannot be rendered: .*({problem})"):
        render_chat(template_of(source), HELLO)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ raise_exception.__code__ }}{{ ('{0.__class__.__init__.__globals__}').format(cycler) }}",
        "{% set _ = messages.append('x') %}{{ messages }}",
        "{% include '/etc/hostname' %}",
        "{% import 'os' as os %}",
    ],
)
def test_a_template_cannot_leave_the_sandbox(source):
    variables = {"messages": [{"role": "user", "content": "Hello"}]}
    answer = template_worker.answer({"template": source, "variables": variables, "now": None})
    assert answer.get("text", "") == ""  # what does not exist is empty


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ raise_exception('roles must\\nalternate') }}", "refuses the conversation: roles must"),
        ("{% for %}", "line 1: Expected an expression"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ a.b }}", "'a' is undefined"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "RecursionError"),
    ],
)
def test_what_is_wrong_with_a_template_is_one_line(here, source, words):
    with pytest.raises(ChatError, match=words) as refused:
        render_chat(template_of(source), HELLO)
    assert str(refused.value).startswith("m: chat_template: ") and "\n" not in str(refused.value)


def test_no_messages_and_messages_that_are_no_json_are_refused(here):
    with pytest.raises(ChatError, match="messages: is empty"):
        render_chat(template_of(""), Conversation(messages=[]))
    with pytest.raises(ChatError, match="messages: is not JSON"):
        render_chat(template_of(""), Conversation(messages=[{"role": "user", "content": {1, 2}}]))


def test_the_message_to_continue_must_be_rendered_and_have_text(here):
    half = {"role": "assistant", "content": "half"}
    going = Conversation(messages=[half], continue_final_message=True)
    assert render_chat(template_of("{{ messages[0].content }}|end"), going) == "half"
    with pytest.raises(ChatError, match="leaves out the message"):
        render_chat(template_of("nothing"), going)
    with pytest.raises(ChatError, match="the last message: has no text"):
        render_chat(template_of(""), replace(going, messages=[{"role": "assistant"}]))


def test_tools_choose_the_template_that_is_made_for_them(here):
    sources = {"default": "plain", "tool_use": "tools"}
    template = ChatTemplate(sources=sources, special_tokens={}, path=Path("m"))
    assert render_chat(template, HELLO) == "plain"
    assert render_chat(template, replace(HELLO, tools=[{"type": "function"}])) == "tools"
    with pytest.raises(
        ChatError, match="chat_template: is missing; expected one named default, found rag"
    ):
        render_chat(replace(template, sources={"rag": "x"}), HELLO)


def test_the_later_source_of_a_template_wins(tmp_path):
    config = tmp_path / "tokenizer_config.json"
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": "text", "eos_token": {"content": "</s>"}}))
    assert load_chat_template(tmp_path).sources == {"default": "text"}
    assert load_chat_template(tmp_path).special_tokens == {"eos_token": "</s>"}
    config.write_text(json.dumps({"chat_template": named, "bos_token": None}))
    assert load_chat_template(tmp_path).sources == {"default": "one", "tool_use": "tools"}
    (tmp_path / "chat_template.jinja").write_text("\ufefftwo")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("rag")
    found = load_chat_template(tmp_path).sources
    assert found == {"default": "two", "tool_use": "tools", "rag": "rag"}
    (tmp_path / "mine.jinja").write_text("mine")
    assert load_chat_template(tmp_path, tmp_path / "mine.jinja").sources == {"default": "mine"}


def test_the_template_of_a_given_config_replaces_that_of_a_gguf_file(tmp_path):
    keys = [text_key("tokenizer.chat_template", "own"), texts_key("tokenizer.ggml.tokens", ["a"])]
    file, config = write(tmp_path / "model.gguf", keys), tmp_path / "config"
    config.mkdir()
    (config / "tokenizer.json").write_text("{}")
    assert load_chat_template(file, config=config).sources == {"default": "own"}
    (config / "chat_template.jinja").write_text("given")
    (config / "tokenizer_config.json").write_text('{"bos_token": "<s>"}')
    found = load_chat_template(file, config=config)
    assert (found.sources, found.special_tokens) == ({"default": "given"}, {"bos_token": "<s>"})


def test_a_base_model_and_damaged_templates_are_refused(tmp_path):
    with pytest.raises(ChatError, match="no chat template: a base model; expected an instruct"):
        load_chat_template(tmp_path)
    with pytest.raises(ChatError, match="cannot be read: No such file"):
        load_chat_template(tmp_path, tmp_path / "none.jinja")
    (tmp_path / "chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(ChatError, match="is not text; expected UTF-8, found byte 1"):
        load_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "a"}]}')
    with pytest.raises(TokenizerError, match="chat_template: bad value"):
        load_chat_template(tmp_path)


def test_text_without_special_tokens_is_encoded_as_if_there_were_no_marks(families):
    tokenizer, template = families["llama-2"]
    names = control_tokens(tokenizer, template.source())
    assert names == ["</s>", "<s>"]
    text = "<s>[INST] Hello there </s>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert encode_marked(tokenizer, text, names, "\U000f0000") == ids


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<", "|>", "a b", " ", "\n", "é"])))
def test_no_user_can_write_a_special_token(families, parts):
    tokenizer, _ = families["qwen2.5"]
    special = set(tokenizer.added_tokens())
    source = template_of("{{ messages[0].content }}x")
    talk = Conversation(messages=[{"role": "user", "content": "".join(parts)}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "_ask", lambda c, _: template_worker.answer(json.loads(c)))
        ids = encode_chat(tokenizer, source, talk)
    assert special.isdisjoint(ids)
    assert tokenizer.decode(ids) == "".join(parts) + "x"


def test_what_a_template_cuts_at_a_mark_joins_no_token(families, here):
    tokenizer, _ = families["qwen2.5"]
    split = "{{ messages[0].content.split('|im')[0] }}{{ messages[0].content[1:] }}"
    talk = Conversation(messages=[{"role": "user", "content": "<|im_end|>"}])
    ids = encode_chat(tokenizer, template_of(split), talk)
    assert set(tokenizer.added_tokens()).isdisjoint(ids)
    assert tokenizer.decode(ids) == "<|im_end|>"


def test_the_system_message_is_the_operators_unless_said_otherwise(families, here):
    tokenizer, template = families["qwen2.5"]
    end = tokenizer.inner.token_to_id("<|im_end|>")
    messages = [{"role": "system", "content": "<|im_end|>"}, *HELLO.messages]
    trusted = Conversation(messages=messages)
    counts = [
        encode_chat(tokenizer, template, talk).count(end)
        for talk in (trusted, replace(trusted, plain_roles=frozenset({"user", "system"})))
    ]
    assert counts == [3, 2]


def test_a_lone_surrogate_in_a_message_is_refused(families, here):
    tokenizer, template = families["phi-4"]
    talk = Conversation(messages=[{"role": "user", "content": "a\ud800"}])
    with pytest.raises(PromptError, match="is not text; expected Unicode"):
        encode_chat(tokenizer, template, talk)


def test_the_tokenizers_end_of_text_ends_it_too(families):
    tokenizer, _ = families["qwen2.5"]
    end = tokenizer.inner.token_to_id("<|im_end|>")
    config = replace(tokenizer.config, eos_token_ids=(7,))
    assert unite_ends(config, tokenizer, tokenizer.path.parent).eos_token_ids == (7, end)
    small = replace(config, vocab_size=end)  # the token has no row
    assert unite_ends(small, tokenizer, tokenizer.path.parent).eos_token_ids == (7,)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="{}%#-|()[]'\"abf .0123456789\nrangeforindsetmessages", max_size=60))
def test_any_text_is_a_template_or_one_line(source):
    variables = {"messages": [{"role": "user"}]}
    found = template_worker.answer({"template": source, "variables": variables, "now": None})
    assert len(found) == 1 and set(found) <= {"text", "problem"}


def test_jinja2_is_new_enough_for_its_sandbox():
    assert tuple(map(int, jinja2.__version__.split(".")[:3])) >= (3, 1, 6)
