"""planish chat without a terminal: turns, a full context, commands, files, Ctrl-C."""

from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from planish.dialogue import answers
from planish.dialogue.answers import CtrlC, Speaker, ctrl_c_noted
from planish.dialogue.commands import COMMANDS, Leave, run_command
from planish.dialogue.messages import Messages, message
from planish.dialogue.saved import load_messages, save_messages
from planish.dialogue.settings import Settings
from planish.dialogue.talk import ContextFullError, NothingSaidError, Talk
from planish.reference.engine import Engine
from planish.reference.errors import OutputError, PlanishError, PromptError, SamplingError
from planish.reference.files.load import open_checkpoint
from planish.reference.text.requests import OneByOne
from planish.reference.text.sampling import Sampling
from planish.reference.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def loaded(one_layer):
    checkpoint = open_checkpoint(one_layer)
    return Engine(checkpoint), load_tokenizer(one_layer, checkpoint.config)


@pytest.fixture
def new_talk(loaded, monkeypatch):
    """new_talk(...) -> a conversation with the tiny model; its template is [text] for each turn."""
    engine, tokenizer = loaded

    def encode(_, template, conversation):
        return tokenizer.encode("".join(f"[{one['content']}]" for one in conversation.messages))

    def call(context=128, shown=None, **settings):
        settings = {"sampling": Sampling(), "max_new_tokens": 4, **settings}
        speaker = Speaker(
            session=OneByOne(engine.config, engine.weights, context),
            tokenizer=tokenizer,
            template=None,
            config=engine.config,
            context=context,
        )
        show = [].append if shown is None else shown.append
        return Talk(speaker=speaker, settings=Settings(**settings), show=show)

    monkeypatch.setattr(answers, "encode_chat", encode)
    return call


def run(line, conversation, noted=None):
    """What a command says, joined, and its answer."""
    told = []
    answer = run_command(line, conversation, told.append, noted or CtrlC())
    return "\n".join(told), answer


def texts(conversation):
    return [turn["content"] for turn in conversation.messages.turns]


def test_an_answer_is_streamed_and_becomes_a_turn(new_talk):
    shown = []
    one = new_talk(shown=shown)
    answer = one.ask("Hi", CtrlC())
    assert "".join(shown) == answer.text
    assert one.messages.turns == [message("user", "Hi"), message("assistant", answer.text)]
    assert (answer.finish, answer.tokens) == ("length", 4)
    assert answer.prompt == one.speaker.tokenizer.encode("[Hi]")
    second = one.ask("More", CtrlC())
    assert second.prompt == one.speaker.tokenizer.encode(f"[Hi][{answer.text}][More]")


def test_the_answer_is_what_generate_writes(new_talk, planish, one_layer):
    answer = new_talk().ask("Hi", CtrlC())
    words = ("--prompt", "[Hi]", "--max_new_tokens", 4, "--engine", "reference")
    assert planish("generate", "--model", one_layer, *words).out == answer.text + "\n"


def test_a_stop_string_ends_an_answer_and_the_session_is_free_again(new_talk):
    whole = new_talk(max_new_tokens=12).ask("Hi", CtrlC()).text
    one = new_talk(max_new_tokens=12, stop=(whole[3:5],))
    answer = one.ask("Hi", CtrlC())
    assert answer.text == whole[: whole.index(whole[3:5])] and answer.finish == "stop"
    assert one.speaker.session.is_idle


def test_ctrl_c_keeps_what_came(new_talk):
    noted = CtrlC()
    one = new_talk(max_new_tokens=60)
    one.show = lambda _: noted.press(signal.SIGINT, None) if not noted.pressed else None
    answer = one.ask("Hi", noted)
    assert answer.finish == "cancelled" and 0 < answer.tokens < 60
    assert one.messages.turns[-1] == message("assistant", answer.text) and answer.text
    assert one.speaker.session.is_idle
    assert one.ask("Go on", CtrlC()).finish == "length"


def test_ctrl_c_before_the_first_word_changes_nothing(new_talk):
    noted = CtrlC()
    noted.press(signal.SIGINT, None)
    one = new_talk()
    with pytest.raises(NothingSaidError, match="before the first word"):
        one.ask("Hi", noted)
    assert one.messages.turns == [] and one.speaker.session.is_idle
    with pytest.raises(KeyboardInterrupt):
        noted.press(signal.SIGINT, None)


def test_the_first_ctrl_c_is_noted_and_the_second_raised():
    given = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    try:
        check_ctrl_c()
    finally:
        signal.signal(signal.SIGINT, given)


def check_ctrl_c():
    before = signal.getsignal(signal.SIGINT)
    with ctrl_c_noted() as noted:
        signal.raise_signal(signal.SIGINT)
        assert noted.pressed
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_what_fails_leaves_the_conversation_as_it_was(new_talk):
    one = new_talk()
    one.ask("Hi", CtrlC())
    before = list(one.messages.turns)

    class Failing(OneByOne):
        def respond(self, request, handle):
            raise SamplingError("cannot sample", name="logits", found="NaN")

    speaker = one.speaker
    one.speaker = replace(speaker, session=Failing(speaker.config, None))
    with pytest.raises(PlanishError, match="logits: cannot sample; found NaN"):
        one.ask("More", CtrlC())
    assert one.messages.turns == before
    one.speaker = speaker
    assert one.ask("More", CtrlC()).tokens == 4


def test_a_full_context_says_how_much_and_drops_only_when_asked(new_talk):
    one = new_talk(context=64)
    one.ask("x" * 20, CtrlC())
    one.ask("y" * 20, CtrlC())
    before = texts(one)
    with pytest.raises(ContextFullError) as full:
        one.ask("z" * 20, CtrlC())
    prompt = len(one.speaker.encode([*one.messages.all(), message("user", "z" * 20)]))
    assert full.value.too_many == prompt + 4 - 1 - 64 > 0
    assert f"context: {full.value.too_many} tokens too many: {prompt} of the" in str(full.value)
    assert texts(one) == before and one.pending == "z" * 20
    said, answer = run("/drop", one)
    assert said == "dropped the oldest 2 messages" and answer.tokens == 4
    assert texts(one) == [*before[2:], "z" * 20, answer.text] and one.pending is None


def test_what_is_dropped_is_said_before_the_answer(new_talk):
    said = []
    one = new_talk(context=64, shown=said)
    one.ask("x" * 40, CtrlC())
    with pytest.raises(ContextFullError):
        one.ask("z" * 40, CtrlC())
    said.clear()
    run_command("/drop", one, said.append, CtrlC())
    assert said[0] == "dropped the oldest 2 messages" and len(said) > 1
    said.clear()
    run_command("/drop", one, said.append, CtrlC())
    assert said == ["nothing is dropped: only the last turn is left"]


def test_reset_answers_what_found_no_room(new_talk):
    one = new_talk(context=64)
    one.ask("x" * 40, CtrlC())
    with pytest.raises(ContextFullError):
        one.ask("z" * 40, CtrlC())
    said, answer = run("/reset", one)
    assert said == "the conversation is empty"
    assert texts(one) == ["z" * 40, answer.text]


def test_a_message_that_is_too_long_by_itself_drops_nothing(new_talk):
    one = new_talk(context=64)
    one.ask("x", CtrlC())
    before = texts(one)
    for line in (None, "/drop"):
        with pytest.raises(ContextFullError, match="tokens too many"):
            one.ask("z" * 90, CtrlC()) if line is None else run(line, one)
        assert texts(one) == before


def test_the_last_free_position_is_used_and_said(new_talk):
    one = new_talk(context=64, max_new_tokens=60)
    answer = one.ask("x" * 20, CtrlC())
    assert len(answer.prompt) + answer.tokens - 1 == 64 and answer.finish == "length"


def test_regenerate_takes_other_draws_and_a_seed_repeats_them(new_talk):
    sampled = {"sampling": Sampling(temperature=2.0), "max_new_tokens": 8}
    found = []
    for _ in range(2):
        one = new_talk(seed=5, **sampled)
        first = one.ask("Hi", CtrlC()).text
        second = run("/regenerate", one)[1].text
        assert texts(one) == ["Hi", second] and first != second
        found.append((first, second))
    assert found[0] == found[1]
    seeds = {new_talk(**sampled).ask("Hi", CtrlC()).sampling.seed for _ in range(3)}
    assert len(seeds) == 3


def test_regenerate_needs_a_message(new_talk):
    with pytest.raises(PromptError, match="/regenerate: nothing to answer"):
        run("/regenerate", new_talk())


def test_undo_removes_the_last_message_and_its_answer(new_talk):
    one = new_talk()
    one.ask("a", CtrlC())
    one.ask("b", CtrlC())
    assert run("/undo", one)[0] == "removed the last 2 messages"
    assert texts(one)[0] == "a" and len(texts(one)) == 2
    run("/undo", one)
    assert run("/undo", one)[0] == "the conversation is empty"


def test_the_system_message_is_set_shown_and_removed(new_talk):
    one = new_talk()
    assert run("/system", one)[0] == "no system message"
    assert run("/system Be brief.", one)[0] == "the system message is set"
    assert run("/system", one)[0] == "system: Be brief."
    assert one.ask("Hi", CtrlC()).prompt == one.speaker.tokenizer.encode("[Be brief.][Hi]")
    run("/system none", one)
    assert one.messages.system is None


def test_tokens_counts_the_conversation(new_talk):
    one = new_talk()
    assert run("/tokens", one)[0] == "0 tokens of 128"
    one.ask("Hi", CtrlC())
    expected = len(one.speaker.encode(one.messages.all()))
    assert run("/tokens", one)[0] == f"{expected} tokens of 128"


def test_set_shows_and_changes(new_talk):
    one = new_talk()
    assert "temperature 0.0\n" in run("/set", one)[0] and "seed random" in run("/set", one)[0]
    for line, said in (
        ("temperature 0.5", "temperature 0.5"),
        ("top_k 5", "top_k 5"),
        ("seed 7", "seed 7"),
        ("seed random", "seed random"),
        ("max_new_tokens 9", "max_new_tokens 9"),
        ("verbose on", "verbose on"),
        ("top_p", "top_p 1.0"),
    ):
        assert run(f"/set {line}", one)[0] == said
    assert one.settings.sampling.temperature == 0.5 and one.settings.max_new_tokens == 9


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("temprature 1", "is unknown; expected one of .*did you mean temperature"),
        ("nothing", "nothing: is unknown"),
        ("temperature hot", "temperature: bad value; expected a number, found 'hot'"),
        ("top_k 2.5", "top_k: bad value; expected an integer"),
        ("top_p 2", "top_p: bad value"),
        ("seed -1", "seed: bad value"),
        ("seed x", "expected an integer, or random"),
        ("max_new_tokens 0", "expected 1 or more"),
        ("verbose maybe", "expected on or off"),
    ],
)
def test_a_bad_setting_is_one_line_and_changes_nothing(new_talk, line, words):
    one = new_talk()
    before = one.settings
    with pytest.raises(SamplingError, match=words):
        run(f"/set {line}", one)
    assert one.settings == before


def test_help_names_every_command_and_quit_leaves(new_talk):
    said = run("/help", new_talk())[0]
    assert all(command in said for command in COMMANDS)
    with pytest.raises(Leave):
        run("/quit", new_talk())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/quti", "/quti: unknown command .did you mean /quit"),
        ("/etc/passwd is a file", "is a message that begins with /"),
        ("/save", "/save: needs one file; expected /save FILE"),
        ("/load a b", "/load: needs one file"),
        ("/undo 2", "/undo: takes no words; found '2'"),
    ],
)
def test_a_command_that_is_none_is_one_line(new_talk, line, words):
    with pytest.raises(PromptError, match=words):
        run(line, new_talk())


def test_a_conversation_is_saved_and_loaded(new_talk, tmp_path):
    one, file = new_talk(), tmp_path / "my chat.json"
    one.messages = Messages(
        system="Be", turns=[message("user", "ä\n🙂"), message("assistant", "b")]
    )
    assert run(f'/save "{file}"', one)[0] == f"{file}: 3 messages"
    assert json.loads(file.read_text("utf-8")) == one.messages.all()
    other = new_talk()
    other.ask("x", CtrlC())
    assert run(f'/load "{file}"', other)[0] == f"{file}: 3 messages, in place of 2"
    assert other.messages == one.messages
    assert [path.name for path in tmp_path.iterdir()] == ["my chat.json"]


def test_save_replaces_nothing_unasked(new_talk, tmp_path):
    file = tmp_path / "a.json"
    file.write_text("precious")
    with pytest.raises(OutputError, match=r"exists already; expected /save --overwrite FILE"):
        run(f"/save {file}", new_talk())
    assert file.read_text() == "precious"
    run(f"/save --overwrite {file}", new_talk())
    assert json.loads(file.read_text()) == []
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        save_messages([], tmp_path / "none" / "a.json")


def test_half_a_surrogate_pair_can_be_saved(tmp_path):
    save_messages([message("assistant", "\ud83d")], tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())[0]["content"] == "\ud83d"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("1", "wrong form; expected .*found int"),
        ('{"turns": []}', "wrong form"),
        ("[1]", "message 1: wrong form"),
        ('[{"role": "robot", "content": "a"}]', "message 1: role: bad value"),
        ('[{"role": "user", "content": null}]', "message 1: content: bad value"),
        (
            '[{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]',
            "messages: wrong order",
        ),
    ],
)
def test_a_file_that_is_no_conversation_is_one_line(new_talk, tmp_path, content, words):
    (tmp_path / "a.json").write_text(content)
    one = new_talk()
    one.ask("x", CtrlC())
    before = one.messages
    with pytest.raises(PromptError, match=f"a.json: {words}") as refused:
        run(f"/load {tmp_path / 'a.json'}", one)
    assert "\n" not in str(refused.value) and one.messages == before


def test_messages_under_a_key_are_read_too(tmp_path):
    (tmp_path / "a.json").write_text('{"messages": [{"role": "user", "content": "a"}]}')
    assert load_messages(tmp_path / "a.json").turns == [message("user", "a")]
