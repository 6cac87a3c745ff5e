import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import keras
import pytest

import keras_gpt_cli
from keras_gpt import LanguageModel
from keras_gpt.tokenizers import ChatTemplate
from keras_gpt_cli import conversation
from tests.tiny import TEMPLATE, make_lm

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?!/\\[]\n"


@pytest.fixture(scope="module")
def lm():
    """A random model that answers with random letters, as long as it may."""
    return make_lm(LETTERS, num_unused=0)


@pytest.fixture
def folder(lm, tmp_path):
    lm.save(tmp_path / "model")
    return tmp_path / "model"


class RecordingScreen:
    """Keeps what it is told to show."""

    def __init__(self):
        self.reasons, self.pieces, self.answers = [], [], []
        self.notes, self.errors = [], []
        self.note = self.notes.append
        self.error = self.errors.append
        self.finish = self.answers.append

    def waiting(self, reason):
        self.reasons.append(reason)
        return contextlib.nullcontext()

    def write(self, piece):
        self.pieces.append(piece)


@pytest.fixture
def start(lm):
    """Start a session with a recording screen."""

    def start(model=lm, **controls):
        controls = {"max_new_tokens": 8, "temperature": 1.0, **controls}
        return conversation.ChatSession(model, RecordingScreen(), **controls)

    return start


def interrupted_in(lm, num_pieces, num_interrupts=1):
    """The model, but Ctrl-C comes while it makes the piece of this number."""

    def stream_chat(*arguments, **controls):
        pieces = lm.stream_chat(*arguments, **controls)
        for number, piece in enumerate(pieces, start=1):
            for _ in range(num_interrupts if number == num_pieces else 0):
                signal.raise_signal(signal.SIGINT)
            yield piece

    names = ("model", "tokenizer", "chat_template", "generation_defaults")
    return SimpleNamespace(
        **{name: getattr(lm, name) for name in names}, stream_chat=stream_chat
    )


# -- the conversation


def test_an_answer_is_what_the_model_says_to_the_whole_conversation(lm, start):
    session = start(system="Be kind.", seed=5)
    session.enter("Hi")
    session.enter("  Why?\n")
    messages = session.messages
    assert [m["role"] for m in messages] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert [messages[i]["content"] for i in (0, 1, 3)] == ["Be kind.", "Hi", "Why?"]
    for end, seed in ((2, 5), (4, 6)):
        expected = lm.chat(messages[:end], 8, temperature=1.0, seed=seed)
        assert messages[end]["content"] == expected
    assert "".join(session.screen.pieces) == (
        messages[2]["content"] + messages[4]["content"]
    )
    assert not session.has_failed


@pytest.mark.every_backend
def test_only_the_first_answer_is_said_to_compile_and_only_where_it_does(start):
    session = start()
    session.enter("Hi")
    session.enter("Hi")
    compiles = keras.backend.backend() != "torch"
    assert [reason.startswith("Compiling") for reason in session.screen.reasons] == [
        compiles,
        False,
    ]


def test_the_figures_are_those_of_the_answer(start):
    session = start()
    session.enter("Hi")
    [answer] = session.screen.answers
    assert answer.text == session.messages[-1]["content"]
    assert answer.num_tokens == 8
    assert answer.first_seconds > 0
    assert answer.tokens_per_second > 0


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (("a b", 1001, 0.5, 50.0, False), "1,001 tokens, 50.0 tokens/s, first after 0"),
        (("a", 1, 0.25, None, False), "1 token, first after 0.2 s"),
        (("a b", 3, 0.5, 1.0, True), "1.0 tokens/s, first after 0.5 s, stopped"),
        (("", 0, 0.0, None, True), "stopped before the answer"),
        (("", 0, 0.5, None, False), "no answer"),
    ],
)
def test_the_figures_make_a_line(answer, line):
    assert line in conversation.Answer(*answer).describe()


def test_an_interrupted_answer_stays_as_far_as_it_came(lm, start):
    session = start(interrupted_in(lm, 3))
    session.enter("Hi")
    assert session.is_interrupted
    assert len(session.messages[-1]["content"]) == 3
    assert session.screen.answers[0].is_interrupted
    session.lm = lm
    session.enter("Go on")
    assert not session.is_interrupted
    assert len(session.messages) == 4


def test_a_second_interruption_does_not_wait_for_the_next_piece(lm, start):
    session = start(interrupted_in(lm, 4, num_interrupts=2))
    before = signal.getsignal(signal.SIGINT)
    session.enter("Hi")
    assert session.is_interrupted
    assert len(session.messages[-1]["content"]) == 3
    assert signal.getsignal(signal.SIGINT) == before  # no longer noted


def test_an_interruption_before_any_text_leaves_the_conversation_alone(lm, start):
    session = start()
    session.enter("Hi")
    before = session.messages
    session.lm = interrupted_in(lm, 1)
    session.enter("Why?")
    assert session.messages == before
    session.enter("/retry")
    assert session.messages == before


def test_a_message_that_is_too_long_is_an_error_in_the_conversation(start):
    session = start()
    session.enter("Hi")
    before = session.messages
    session.enter("a" * 100)
    assert session.messages == before
    [error] = session.screen.errors
    assert "too long" in error
    assert "\n" not in error
    assert session.has_failed
    session.enter("Short")
    assert len(session.messages) == 4


def test_a_model_that_can_not_chat_is_refused_at_once(lm, start):
    with pytest.raises(ValueError, match=r"chat template.*keras-gpt generate"):
        start(LanguageModel(lm.model, lm.tokenizer))


@pytest.mark.parametrize(
    "control", [{"temperature": -1}, {"top_p": 0}, {"max_new_tokens": -1}]
)
def test_a_control_out_of_range_is_refused_at_once(start, control):
    with pytest.raises(ValueError, match=next(iter(control))):
        start(**control)


def test_a_template_without_system_prompts_says_so_at_once(lm, start):
    refusing = ChatTemplate(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}" + TEMPLATE
    )
    model = LanguageModel(lm.model, lm.tokenizer, chat_template=refusing)
    with pytest.raises(ValueError, match="no system"):
        start(model, system="Be kind.")
    session = start(model)
    session.enter("/system Be kind.")
    assert "no system" in session.screen.errors[0]
    session.enter("Hi")
    assert len(session.messages) == 2


# -- commands


def test_help_names_every_command(start):
    session = start()
    session.enter("/help")
    [text] = session.screen.notes
    for name, (_, obey) in conversation.COMMANDS.items():
        does = re.escape(obey.__doc__)
        assert re.search(rf"^/{name}\b.*{does}$", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("/rest", "Did you mean /reset?"),
        ("/xyzzy", "Type /help."),
        ("/", "Type /help."),
        ("/save", "name of a file"),
        ("/reset all", "stands alone"),
        ("/undo", "no message yet"),
        ("/retry", "no message yet"),
        ("/save here.json", "no message yet"),
        ("/load nowhere.json", "nowhere.json"),
    ],
)
def test_a_command_that_can_not_be_obeyed_is_explained_in_a_line(start, line, hint):
    session = start()
    session.enter(line)
    [error] = session.screen.errors
    assert hint in error
    assert "\n" not in error
    assert session.messages == []


def test_reset_forgets_all_but_the_system_prompt(start):
    session = start(system="Be kind.")
    session.enter("Hi")
    session.enter("/reset")
    assert session.messages == [{"role": "system", "content": "Be kind."}]


def test_system_shows_and_changes_the_system_prompt(start):
    session = start()
    session.enter("/system")
    session.enter("/system Be brief.")
    session.enter("/system")
    assert "no system prompt" in session.screen.notes[0]
    assert session.screen.notes[-1].endswith("Be brief.")
    session.enter("Hi")
    assert session.messages[0] == {"role": "system", "content": "Be brief."}


def test_retry_answers_the_same_message_differently(start):
    session = start()
    session.enter("Hi")
    first = session.messages
    session.enter("/RETRY")
    second = session.messages
    assert second[0] == first[0]
    assert len(second) == 2
    assert second[1] != first[1]


def test_undo_takes_back_a_message_and_its_answer(start):
    session = start()
    session.enter("Hi")
    before = session.messages
    session.enter("Why?")
    session.enter("/undo")
    assert session.messages == before
    assert "Why?" in session.screen.notes[0]


def test_two_slashes_send_one_and_paths_are_no_commands(start):
    session = start()
    session.enter("//help me")
    session.enter("/etc/fstab?")
    assert [m["content"] for m in session.messages[::2]] == ["/help me", "/etc/fstab?"]


def test_quit_ends_the_session(start):
    session = start()
    session.enter("/quit")
    assert session.is_over


def test_a_saved_conversation_goes_on_elsewhere(start, tmp_path):
    session = start(system="Be kind.")
    session.enter("Hi")
    path = tmp_path / "talks" / "first.json"
    session.enter(f"/save {path}")
    session.enter("Why?")
    session.enter(f"/save {path}")  # a conversation may be replaced
    assert json.loads(path.read_text("utf-8")) == {"messages": session.messages}
    other = start()
    other.enter(f"/load {path}")
    assert other.messages == session.messages
    assert not other.screen.errors
    other.enter("/undo")
    assert other.messages == session.messages[:-2]


def test_save_replaces_nothing_but_conversations(start, tmp_path):
    path = tmp_path / "settings.json"
    path.write_text('{"important": 1}')
    session = start()
    session.enter("Hi")
    session.enter(f"/save {path}")
    assert "settings.json holds no conversation" in session.screen.errors[0]
    assert path.read_text() == '{"important": 1}'


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "5", '{"messages": [{"role": "user"}]}', '["Hi"]']
)
def test_load_refuses_what_is_no_conversation(start, tmp_path, content):
    path = tmp_path / "talk.json"
    path.write_text(content)
    session = start()
    session.enter("Hi")
    before = session.messages
    session.enter(f"/load {path}")
    assert "talk.json" in session.screen.errors[0]
    assert session.messages == before


# -- in a pipe


def test_lines_are_messages_and_a_backslash_joins_two(start):
    session = start()
    conversation.run_lines(session, ["Hi\n", "\n", "a\\\n", "b\n", "/quit\n", "c\n"])
    assert [m["content"] for m in session.messages[::2]] == ["Hi", "a\nb"]


def test_an_interruption_in_a_pipe_ends_the_program(lm, start):
    session = start(interrupted_in(lm, 3))
    with pytest.raises(KeyboardInterrupt):
        conversation.run_lines(session, ["Hi\n", "Why?\n"])
    assert len(session.messages) == 2


@pytest.fixture
def chat(monkeypatch, capfd):
    """Run `keras-gpt chat` in this process; returns status, output and errors."""

    def chat(*arguments, text="", stdin=None):
        monkeypatch.setattr(sys, "argv", ["keras-gpt", "chat", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", stdin or io.StringIO(text))
        with pytest.raises(SystemExit) as raised:
            keras_gpt_cli.main()
        output, errors = capfd.readouterr()
        return raised.value.code or 0, output, errors

    return chat


def test_prompt_prints_one_answer(lm, chat, folder):
    controls = ("--max-new-tokens", 9, "--seed", 3, "--top-k", 0, "--system", "Hm.")
    status, output, errors = chat(folder, "--prompt", "Hi", *controls)
    messages = [
        {"role": "system", "content": "Hm."},
        {"role": "user", "content": "Hi"},
    ]
    assert status == 0
    assert output == lm.chat(messages, 9, seed=3, top_k=None) + "\n"
    assert errors == ""


def test_standard_input_is_a_conversation(lm, chat, folder):
    status, output, errors = chat(
        folder, "--max-new-tokens", 9, "--temperature", 0, text="Hi\n/undo\nHi\n/oops\n"
    )
    answer = lm.chat([{"role": "user", "content": "Hi"}], 9, temperature=0)
    assert output == f"{answer}\n" * 2
    assert errors.splitlines() == [
        "Took back: Hi",
        "Error: There is no command /oops. Type /help.",
    ]
    assert status == 2


def test_what_prevents_a_session_is_a_one_line_error(lm, chat, folder, tmp_path):
    LanguageModel(lm.model, lm.tokenizer).save(tmp_path / "base")
    for arguments, part in (
        ((tmp_path / "base",), "no chat template"),
        ((tmp_path / "nowhere",), "nowhere"),
        ((folder, "--temperature", -1), "temperature"),
        ((folder, "--dtype", "float32", "--weights", "bfloat16"), "weights"),
    ):
        status, output, errors = chat(*arguments, text="Hi\n")
        assert status == 2
        assert output == ""
        assert errors.startswith("Error: ")
        assert errors.count("\n") == 1
        assert part in errors


def test_ctrl_c_in_a_pipe_says_nothing_of_training(chat, folder):
    class Interrupted(io.StringIO):
        def __next__(self):
            raise KeyboardInterrupt

    status, output, errors = chat(folder, stdin=Interrupted())
    assert (status, output, errors) == (130, "", "\nStopped.\n")


# -- in a terminal


def test_what_a_model_says_can_not_control_the_terminal(capsys):
    screen = conversation.Screen(is_terminal=True)
    screen.write("a\x1b[2Jb\x9b1mc\td\r\n")
    screen.note("[bold]e[/bold] \x1b]0;title\x07")
    shown = capsys.readouterr().out
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", shown)
    assert "c\td" in shown
    assert "[bold]e[/bold]" in shown


def test_history_that_can_not_be_kept_is_done_without(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "state"))
    assert conversation.history_file() == (
        tmp_path / "state" / "keras-gpt" / "chat_history"
    )
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "file"))
    assert conversation.history_file() is None


# with a terminal that is its own, Ctrl-C is a signal, as for a person
IN_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
import keras_gpt_cli
keras_gpt_cli.main()
"""
PROMPT = r"\x1b\[\?2004h"  # from here on pasted text is marked as such
ANSWER = r"\x1b\[2K[^\x1b]{9}"  # in place of the spinner


class Terminal:
    """A program in a terminal of its own, as a person has it."""

    def __init__(self, arguments, environment):
        import pty

        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""
        self._seen = 0

    def type(self, keys):
        os.write(self._master, keys.encode())

    def wait_for(self, pattern, seconds=120):
        """Read until the pattern is shown; returns the match."""
        import select

        end = time.monotonic() + seconds
        while True:
            match = re.compile(pattern, re.DOTALL).search(self.shown, self._seen)
            if match:
                self._seen = match.end()
                return match
            is_ready = select.select([self._master], [], [], 1)[0]
            assert time.monotonic() < end, self.shown[self._seen :][-2000:]
            if is_ready:
                self.shown += os.read(self._master, 65536).decode("utf-8", "replace")

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def terminal(folder, tmp_path):
    pytest.importorskip("pty", reason="Windows has no pseudo-terminals of this kind")
    terminal = Terminal(
        [
            *(sys.executable, "-c", IN_TERMINAL),
            *("chat", str(folder), "--max-new-tokens", "100000"),
        ],
        {
            **os.environ,
            "KERAS_BACKEND": keras.backend.backend(),
            "TERM": "xterm",
            "COLUMNS": "100",
            "XDG_STATE_HOME": str(tmp_path / "state"),
            "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody here says where the cursor is
        },
    )
    yield terminal
    terminal.close()


def test_a_session_in_a_terminal(terminal, tmp_path):
    terminal.wait_for(r"model: [\d,]+ parameters, float32, 64 tokens of context, on ")
    terminal.wait_for(PROMPT)
    terminal.type("Hi\\\rthere\r")
    terminal.wait_for(ANSWER)
    terminal.type("\x03")
    terminal.wait_for(r"tokens/s, first after [\d.]+ s, stopped")
    terminal.wait_for(PROMPT)
    terminal.type(f"/save {tmp_path}/talk.json\r")
    terminal.wait_for("Wrote 2 messages")
    terminal.wait_for(PROMPT)
    terminal.type("given up\x03")
    terminal.wait_for(PROMPT)
    terminal.type("\x03")
    terminal.wait_for("To leave, type /quit or press Ctrl-D")
    terminal.wait_for(PROMPT)
    terminal.type("\x1b[A\x1b[A\r")  # the last entry but one
    terminal.wait_for(ANSWER)
    terminal.type("\x03")
    terminal.wait_for("stopped")
    terminal.wait_for(PROMPT)
    terminal.type("\x04")
    assert terminal.process.wait(timeout=60) == 0
    assert "Traceback" not in terminal.shown
    saved = json.loads((tmp_path / "talk.json").read_text("utf-8"))["messages"]
    assert [m["role"] for m in saved] == ["user", "assistant"]
    assert saved[0]["content"] == "Hi\nthere"
    # an interruption may come between a piece and its appearance
    assert saved[1]["content"][:-1].replace("\n", "\r\n") in terminal.shown
    history = (tmp_path / "state" / "keras-gpt" / "chat_history").read_text("utf-8")
    assert "+Hi\n+there\n" in history
