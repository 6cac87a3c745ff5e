"""What `keras-gpt chat` does: a conversation with a model, in a terminal or a pipe.

`ChatSession` holds the conversation and knows the commands; a screen shows what is
said, to a person or to a pipe.
"""

import contextlib
import difflib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = (
    "Enter sends. A backslash before Enter, or Alt-Enter, begins another line. Ctrl-C "
    "stops an answer. To send what begins with a slash, write two."
)
_COMMAND = re.compile(r"/([^\s/]*)(?:\s+(.*))?", re.DOTALL)
# what could move the cursor or change the terminal; a line feed and a tab can't
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Answer:
    """An answer and how it came.

    Attributes:
        text: The answer, as far as it came.
        num_tokens: Tokens that the tokenizer makes of the text.
        first_seconds: Time until text appeared.
        tokens_per_second: From then on; `None` for a text too short to tell.
        is_interrupted: Whether Ctrl-C stopped it.
    """

    text: str
    num_tokens: int
    first_seconds: float
    tokens_per_second: float | None
    is_interrupted: bool

    def describe(self) -> str:
        """The figures in a line."""
        if not self.text:
            return "stopped before the answer" if self.is_interrupted else "no answer"
        parts = [f"{self.num_tokens:,} token{'s' * (self.num_tokens != 1)}"]
        if self.tokens_per_second is not None:
            parts.append(f"{self.tokens_per_second:.1f} tokens/s")
        parts.append(f"first after {self.first_seconds:.1f} s")
        return ", ".join(parts) + (", stopped" if self.is_interrupted else "")


class ChatSession:
    """A conversation: what was said, and the commands that change it.

    Args:
        lm: A `keras_gpt.LanguageModel` with a chat template.
        screen: Shows answers and notes.
        system: System prompt. Defaults to what the template says without one.
        seed: Of the first answer; each has the next.
        **controls: Others of `LanguageModel.chat`.

    Attributes:
        messages: The conversation as `LanguageModel.chat` takes it.
        is_over: Whether `/quit` came.
        has_failed: Whether an error was shown.
        is_interrupted: Whether Ctrl-C stopped the last answer.

    Raises:
        ValueError: The model can't chat, or takes no system prompt, or a control is out
            of its range.
    """

    def __init__(
        self,
        lm,
        screen: "Screen",
        *,
        system: str | None = None,
        seed: int = 0,
        **controls: Any,
    ):
        from keras_gpt.controls import CONTROLS, check_control
        from keras_gpt.generation import Slots, is_outside

        if lm.chat_template is None:
            raise ValueError(
                "The model has no chat template: it wasn't tuned to chat, or its "
                "template was lost. Let it continue a text: keras-gpt generate."
            )
        # says what is wrong with a control before a question is typed
        for name, value in {**lm.generation_defaults, **controls}.items():
            if name in CONTROLS:
                check_control(name, value)
        self.lm = lm
        self.screen = screen
        self.is_over = False
        self.has_failed = False
        self.is_interrupted = False
        self._controls = controls
        if not is_outside(lm.model):  # earlier turns are not read again
            self._controls = {"slots": Slots(lm.model, num_slots=1), **controls}
        self._seed = seed
        self._num_answers = 0
        self._system: list[dict[str, str]] = []
        self._turns: list[dict[str, str]] = []
        if system:
            self._set_system(system)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as `LanguageModel.chat` takes it."""
        return [*self._system, *self._turns]

    def enter(self, text: str) -> None:
        """Obey a command or answer a message; what goes wrong is shown in a line."""
        text = text.strip()
        if not text:
            return
        try:
            command = _COMMAND.fullmatch(text)
            if command:
                self._obey(command[1].lower(), (command[2] or "").strip())
            else:
                message = text.removeprefix("/") if text.startswith("//") else text
                self._answer([*self._turns, {"role": "user", "content": message}])
        except (ValueError, OSError) as error:
            self.has_failed = True
            self.screen.error(" ".join(str(error).split()))

    def _answer(self, turns):
        """Answer the last of these turns, which then are the conversation."""
        from keras_gpt.runs import noticed_interrupts

        # JAX and TensorFlow compile for each size, mostly in the first answer
        compiles = self._num_answers == 0 and _backend() != "torch"
        reason = "Compiling, once for each size" if compiles else "Reading"
        stream = self.lm.stream_chat(
            [*self._system, *turns],
            seed=self._seed + self._num_answers,
            **self._controls,
        )
        pieces: list[str] = []
        start = shown = time.perf_counter()
        with noticed_interrupts() as noticed, contextlib.suppress(KeyboardInterrupt):
            with self.screen.waiting(reason):
                # reading makes the first token and a loop the second: two programs
                head = list(_until(noticed, itertools.islice(stream, 2)))
            shown = time.perf_counter()
            if not noticed.is_set():
                for piece in _until(noticed, itertools.chain(head, stream)):
                    pieces.append(piece)
                    self.screen.write(piece)
        self.is_interrupted = noticed.is_set()
        seconds = time.perf_counter() - shown
        text = "".join(pieces)
        if text or not self.is_interrupted:
            self._num_answers += 1
            self._turns = [*turns, {"role": "assistant", "content": text}]
        num_later = self._count_tokens("".join(pieces[2:]))
        self.screen.finish(
            Answer(
                text=text,
                num_tokens=self._count_tokens(text),
                first_seconds=shown - start,
                tokens_per_second=num_later / seconds if num_later else None,
                is_interrupted=self.is_interrupted,
            )
        )

    def _count_tokens(self, text):
        return len(self.lm.tokenizer.encode(text))

    def _obey(self, name, argument):
        if name not in COMMANDS:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
            hint = f"Did you mean /{nearest[0]}?" if nearest else "Type /help."
            raise ValueError(f"There is no command /{name}. {hint}")
        takes, obey = COMMANDS[name]
        if argument and not takes:
            raise ValueError(f"/{name} stands alone.")
        if not argument and takes == "FILE":
            raise ValueError(f"/{name} needs the name of a file.")
        obey(self, argument)

    def _help(self, _):
        """Show this."""
        lines = [
            f"{f'/{name} {takes}':12}  {obey.__doc__}"
            for name, (takes, obey) in COMMANDS.items()
        ]
        self.screen.note("\n".join([*lines, KEYS]))

    def _reset(self, _):
        """Forget the conversation; the system prompt stays."""
        self._turns = []
        self.screen.note("The conversation is forgotten.")

    def _change_system(self, text):
        """Give the model another system prompt; without TEXT, show it."""
        if text:
            self._set_system(text)
            self.screen.note("The model has another system prompt.")
        elif self._system:
            self.screen.note(f"The system prompt: {self._system[0]['content']}")
        else:
            self.screen.note("There is no system prompt but the template's own.")

    def _set_system(self, text):
        system = [{"role": "system", "content": text}]
        # a template that takes none says so now
        self.lm.chat_template.render([*system, {"role": "user", "content": "Hi"}])
        self._system = system

    def _last_message(self):
        """Where the last message of the user is."""
        for i in reversed(range(len(self._turns))):
            if self._turns[i]["role"] == "user":
                return i
        raise ValueError("There is no message yet.")

    def _retry(self, _):
        """Answer the last message again, with another seed."""
        self._answer(self._turns[: self._last_message() + 1])

    def _undo(self, _):
        """Take back the last message and its answer."""
        last = self._last_message()
        message = self._turns[last]["content"]
        self._turns = self._turns[:last]
        self.screen.note(f"Took back: {_shorten(message)}")

    def _save(self, name):
        """Write the conversation as JSON."""
        from keras_gpt.files import write_json

        path = Path(name).expanduser()
        if not self._turns:
            raise ValueError("There is no message yet.")
        if path.exists():
            _read_conversation(path)  # replaces its like and nothing else
        write_json(path, {"messages": self.messages})
        self.screen.note(f"Wrote {len(self.messages)} messages to {path}.")

    def _load(self, name):
        """Go on with a saved conversation."""
        path = Path(name).expanduser()
        messages = _read_conversation(path)
        self.lm.chat_template.render(messages)
        has_system = messages[0]["role"] == "system"
        self._system, self._turns = messages[:has_system], messages[has_system:]
        last = f" The last: {_shorten(messages[-1]['content'])}" if self._turns else ""
        self.screen.note(f"Read {len(messages)} messages.{last}")

    def _quit(self, _):
        """Leave; so does Ctrl-D."""
        self.is_over = True


# Command: (what it takes, what obeys it and says what it does)
COMMANDS = {
    "help": ("", ChatSession._help),
    "reset": ("", ChatSession._reset),
    "system": ("TEXT", ChatSession._change_system),
    "retry": ("", ChatSession._retry),
    "undo": ("", ChatSession._undo),
    "save": ("FILE", ChatSession._save),
    "load": ("FILE", ChatSession._load),
    "quit": ("", ChatSession._quit),
}


def _until(noticed, pieces):
    """The pieces up to the one during which Ctrl-C came."""
    for piece in pieces:
        yield piece
        if noticed.is_set():
            return


class Screen:
    """Where a session shows what is said.

    To a person answers come with figures, notes dim and errors red; to a pipe answers
    go to standard output and the rest to standard error.

    Args:
        is_terminal: Whether a person looks on.
    """

    def __init__(self, is_terminal: bool):
        from rich.console import Console

        self._is_terminal = is_terminal
        self._console = Console(stderr=not is_terminal)

    def waiting(self, reason: str) -> contextlib.AbstractContextManager:
        """Show a spinner that leaves no trace, while the context lasts."""
        if not self._is_terminal:
            return contextlib.nullcontext()
        return self._console.status(f"[dim]{reason}[/]")

    def write(self, piece: str) -> None:
        """Show the next piece of an answer, for a terminal harmless."""
        is_shown = self._is_terminal or sys.stdout.isatty()
        print(_clean(piece) if is_shown else piece, end="", flush=True)

    def finish(self, answer: Answer) -> None:
        """End the answer; a person gets its figures and an empty line."""
        if answer.text or not self._is_terminal:
            self.write("\n")
        if self._is_terminal:
            self.note(answer.describe())
            self.write("\n")

    def note(self, text: str, style: str = "dim") -> None:
        """Show what the program says."""
        self._console.print(
            _clean(text), style=style, markup=False, highlight=False, soft_wrap=True
        )

    def error(self, text: str) -> None:
        """Show a line about what went wrong."""
        self.note(f"Error: {text}", "red")


def run_lines(session: ChatSession, lines: Iterable[str]) -> None:
    """Enter each line; one that ends with a backslash goes on in the next.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped an answer.
    """
    text = ""
    for line in lines:
        text += line.rstrip("\n")
        if text.endswith("\\"):
            text = text[:-1] + "\n"
            continue
        session.enter(text)
        text = ""
        if session.is_interrupted:
            raise KeyboardInterrupt
        if session.is_over:
            return
    session.enter(text)


def run_terminal(session: ChatSession) -> None:
    """Prompt, with line editing and history, until `/quit` or Ctrl-D."""
    read = _line_reader()
    num_interrupts = 0
    while not session.is_over:
        try:
            text = read()
        except EOFError:
            return
        except KeyboardInterrupt:  # the line is given up
            num_interrupts += 1
            if num_interrupts > 1:
                session.screen.note("To leave, type /quit or press Ctrl-D.")
            continue
        num_interrupts = 0
        # a Ctrl-C too late or too early to stop an answer
        with contextlib.suppress(KeyboardInterrupt):
            session.enter(text)


def _line_reader():
    """A function that prompts for a message and returns it."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event):
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event):
        event.current_buffer.insert_text("\n")

    path = history_file()
    session = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        history=FileHistory(str(path)) if path else InMemoryHistory(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
    )
    return session.prompt


def history_file() -> Path | None:
    """Where the messages of earlier sessions are; `None` if it can't be written.

    References:
        - [XDG base directories](https://specifications.freedesktop.org/basedir-spec/)
    """
    if os.name == "nt":
        folder = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(folder) / "keras-gpt" / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what people type to a model is their own
        with path.open("ab"):
            return path
    except OSError:
        return None


def describe_model(lm, name: str) -> str:
    """A line about the model that was loaded."""
    stated = lm.source.get("name") or name
    name = name if stated == name else f"{name} ({stated})"
    return (
        f"{name}: {lm.model.count_params():,} parameters, "
        f"{lm.model.dtype_policy.name}, {lm.model.config.context_length:,} tokens of "
        f"context, on {_backend()}. /help helps."
    )


def _backend():
    import keras

    return keras.backend.backend()


def _read_conversation(path):
    from keras_gpt.files import read_json
    from keras_gpt.tokenizers.chat_template import check_messages

    content = read_json(path)
    messages = content.get("messages") if isinstance(content, dict) else content
    try:
        check_messages(messages if isinstance(messages, list) else [])
    except ValueError as error:
        raise ValueError(f"{path} holds no conversation. {error}") from error
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _shorten(text):
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _clean(text):
    """Text that can't do anything to a terminal, whatever a model says."""
    return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)
