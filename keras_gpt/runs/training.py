"""Doing a training run: tokenizer, data, `model.fit`, checkpoints, logs."""

import math
from pathlib import Path

import keras
from rich.console import Console

from keras_gpt import data, tokenizers
from keras_gpt.backend import hosts
from keras_gpt.cluster import connected
from keras_gpt.config import check_choice, suggest
from keras_gpt.language_model import TOKENIZER_FOLDER, Evaluation, LanguageModel
from keras_gpt.model import GPT
from keras_gpt.runs.config import RunConfig
from keras_gpt.runs.fitting import fit
from keras_gpt.runs.folder import claimed, write_config
from keras_gpt.runs.memory import check_memory
from keras_gpt.runs.report import CONFIG_FILE, DATA_FOLDER, draw_attention

TOKENIZERS = {
    "characters": tokenizers.CharacterTokenizer,
    "sentencepiece": tokenizers.SentencePieceTokenizer,
    "byte_pair": tokenizers.BytePairTokenizer,
}


def train(config: RunConfig, *, resume: bool = False, console=None) -> LanguageModel:
    """Do a training run: tokenizer, data, `model.fit`, checkpoints, logs.

    The folder `config.output` then holds the best model by validation loss, as
    `LanguageModel.load` reads it, the last two states, from which a stopped run goes
    on exactly, `log.csv`, a loss curve, TensorBoard events, and what the run needs to
    be repeated.

    Args:
        config: The run.
        resume: Go on with the run that was stopped, with the fields that it had; of
            those given here only some may be others (`runs.MAY_CHANGE`).
        console: A `rich.console.Console` for messages. Defaults to standard error.

    Returns:
        The best model.

    Raises:
        FileExistsError: The folder has a run or a model, and `resume` is false.
        FileNotFoundError: There is nothing to resume, or a part of it is missing.
        ValueError: Something doesn't fit, a file is damaged, the run would go on as
            another, or the loss became infinite.
    """
    console = console or Console(stderr=True)
    with claimed(config, resume, console) as config:
        tokenizer = _find_tokenizer(config, resume)
        # here, what doesn't fit is found before the corpus is tokenized
        architecture = _architecture(config, tokenizer)
        length = config.sequence_length or architecture.context_length
        memory = check_memory(config, architecture, length)
        lm = LanguageModel(GPT(architecture, dtype=config.dtype), tokenizer)
        directory = _prepare(config, tokenizer, resume, console)

        def load(split, **options):
            if split == "val":
                options["num_steps"] = config.evaluation_batches
            return data.load_batches(
                directory,
                split,
                config.batch_size,
                length,
                config.seed,
                packing=config.packing,
                vocab_size=lm.model.config.vocab_size,
                **options,
            )

        def sample():
            prompt = config.sample_prompt
            if prompt is None:
                prompt = first_words(lm, directory)
            return prompt + lm.generate(prompt, config.sample_tokens, seed=config.seed)

        def picture():
            start = data.TokenDataset(directory, "val")[0:length].tolist()
            return draw_attention(lm, start)

        counts = data.read_metadata(directory)["splits"]["val"]
        fit(
            config,
            lm.model,
            load,
            resume=resume,
            console=console,
            intro=f"{memory.describe()}\nTraining "
            f"{lm.model.count_params():,} parameters on {keras.backend.backend()}",
            sequence_length=length,
            save=lambda: lm.save(config.output),
            sample=sample,
            picture=picture,
            start_loss=math.log(tokenizer.vocab_size),
            tokens_per_byte=counts["num_tokens"] / counts["num_bytes"],
        )
        return LanguageModel.load(config.output, dtype=config.dtype)


def _find_tokenizer(config, resume):
    """Load or train the tokenizer, and keep it in the run's folder."""
    if config.data is not None:
        return _open_prepared(config.data, config.tokenizer)
    kept = Path(config.output) / TOKENIZER_FOLDER
    if resume and kept.is_dir():
        return tokenizers.load(kept)
    if Path(config.tokenizer).is_dir() and config.tokenizer not in TOKENIZERS:
        tokenizer = tokenizers.load(config.tokenizer)
    elif hosts.place()[0] == 0:
        tokenizer = train_tokenizer(
            config.tokenizer, config.corpus, config.vocab_size, **_source(config)
        )
    if hosts.place()[0] == 0:
        write_config(config)  # so that a run that is stopped here goes on
        tokenizer.save(kept)
    hosts.wait_for_all()  # it is there
    return tokenizers.load(kept)


def _source(config):
    return {"text_field": config.text_field, "encoding": config.encoding}


def _prepare(config, tokenizer, resume, console):
    """Get the folder of the token files."""
    if config.data is not None:
        return Path(config.data)
    directory = Path(config.output) / DATA_FOLDER
    if hosts.place()[0] == 0:
        data.prepare(
            config.corpus,
            directory,
            tokenizer,
            validation_fraction=config.validation_fraction,
            overwrite=not resume,
            **_source(config),
        )
    hosts.wait_for_all()  # it is there
    counts = data.read_metadata(directory)["splits"]
    console.print(
        f"Prepared {counts['train']['num_tokens']:,} tokens to train on and "
        f"{counts['val']['num_tokens']:,} to validate, of "
        f"{tokenizer.vocab_size:,} kinds",
        highlight=False,
    )
    return directory


def _open_prepared(directory, tokenizer):
    """The tokenizer that a folder of token files was prepared with."""
    if tokenizer in TOKENIZERS:
        raise ValueError(
            "`data` is already tokenized: name the folder of its tokenizer too, "
            f"tokenizer=FOLDER. Received: tokenizer={tokenizer!r}."
        )
    loaded = tokenizers.load(tokenizer)
    if data.read_metadata(directory)["tokenizer"] != loaded.fingerprint:
        raise ValueError(
            f"{directory} was prepared with another tokenizer than {tokenizer}. Name "
            "the one that it was prepared with."
        )
    return loaded


def train_tokenizer(
    kind: str,
    corpus: str,
    vocab_size: int | None = None,
    *,
    text_field: str = "text",
    encoding: str = "utf-8",
    engine: str = "process",
    ray_address: str | None = None,
):
    """Train a tokenizer on a corpus.

    Args:
        kind: `"byte_pair"`, `"sentencepiece"` or `"characters"`.
        corpus: As `RunConfig.corpus`.
        vocab_size: Defaults to 4096, and for characters to as many as there are.
        text_field: As in `RunConfig`.
        encoding: As in `RunConfig`.
        engine: What reads the corpus and learns: `"process"`, this one; or `"ray"`, a
            task of a Ray cluster.
        ray_address: As of `data.prepare`.

    Returns:
        A tokenizer.

    Raises:
        ImportError: Ray is missing.
        ValueError: There is no such kind or engine, or the corpus is empty.
    """
    check_choice("engine", engine, ("process", "ray"))
    if kind not in TOKENIZERS:
        raise ValueError(
            "`tokenizer` must be a kind of tokenizer or the folder of one. "
            f"{suggest('tokenizer', kind, TOKENIZERS)}"
        )
    fields = {"text_field": text_field, "encoding": encoding}
    if engine == "ray":
        with connected(ray_address) as ray:
            task = ray.remote(train_tokenizer).remote
            return ray.get(task(kind, corpus, vocab_size, **fields))
    documents = data.Corpus(corpus, **fields)
    texts = (piece.text for piece in documents.pieces())
    if vocab_size is None and kind != "characters":
        vocab_size = 4096
    return TOKENIZERS[kind].train(texts, vocab_size)


def _architecture(config, tokenizer):
    """The model's, with the tokenizer's vocabulary unless the run says otherwise."""
    defaults = {"vocab_size": tokenizer.vocab_size}
    if config.packing == "documents":
        if tokenizer.end_of_text_id is None:
            raise ValueError(
                "`packing` of whole documents needs an end-of-text token between "
                "them, which the tokenizer lacks. Received: packing=documents, "
                f"tokenizer={config.tokenizer}. Take packing=windows."
            )
        defaults["document_separator_id"] = tokenizer.end_of_text_id
    return config.architecture(**defaults)


def first_words(lm: LanguageModel, directory: str | Path) -> str:
    """The beginning of the validation text in a prepared folder, as a prompt."""
    ids = data.TokenDataset(directory, "val")[0:8]
    return lm.tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def evaluate_validation(output: str | Path, lm: LanguageModel) -> Evaluation:
    """Evaluate a model on a run's validation tokens, in windows of its context.

    Args:
        output: The run's folder.
        lm: The model.

    Raises:
        FileNotFoundError: The folder has no prepared data.
    """
    config = RunConfig.from_yaml(Path(output) / CONFIG_FILE)
    directory = Path(config.data) if config.data else Path(output) / DATA_FOLDER
    tokens = data.TokenDataset(directory, "val")
    length = lm.model.config.context_length
    # the whole windows, as in training
    tokens = tokens[: (len(tokens) - 1) // length * length + 1]
    return lm.evaluate_ids(
        tokens[i : i + 2**16].tolist() for i in range(0, len(tokens), 2**16)
    )
