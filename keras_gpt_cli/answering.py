"""Commands that have a model answer, and measure how well."""

import contextlib
import dataclasses
import functools
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli import options
from keras_gpt_cli.loading import load
from keras_gpt_cli.output import note, print_table, progress, stream

FORMS = {
    "chat": "a message to a chat model",
    "summarize": "a text to summarize",
    "translate": "a text to translate",
}
_RECORDS = (".jsonl", ".parquet")  # other files are one text


def summarize(
    model: options.Model,
    text: options.Texts = None,
    file: options.TextFile = None,
    output: options.Answers = None,
    max_new_tokens: options.MaxNewTokensOfSummary = None,
    num_beams: options.NumBeams = 1,
    instruction: Annotated[
        str | None, typer.Option(help="What a chat model is told instead.")
    ] = None,
    lookup_tokens: Annotated[
        int,
        typer.Option(
            help="Guess so many tokens from the text: the same, in fewer passes.",
            min=0,
        ),
    ] = 0,
    batch_size: options.BatchSize = 8,
    engine: options.Engine = options.ProcessOrRay.PROCESS,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Summarize a text, or each text of a file of JSON Lines."""
    from keras_gpt import LanguageModel

    records = _read_records(text, file, "text")
    about = {"model": model, "dtype": dtype, "weights": weights}
    about["instruction"] = instruction
    job = _find_job(
        records, file, output, "summary", about, engine, workers, ray_address
    )
    controls = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    controls |= options.given(lookup_tokens=lookup_tokens or None)
    opened = functools.partial(_open, model, dtype, weights, instruction)
    texts = [record["text"] for record in records]
    asked = _Asked(opened, LanguageModel.summarize, texts, controls, batch_size)
    _answer(asked, "summarizing", job)


def translate(
    model: options.Model,
    text: options.Texts = None,
    source: Annotated[str, typer.Option(help="Language of the text.")] = "en",
    target: Annotated[str, typer.Option(help="Language to translate to.")] = "de",
    file: options.TextFile = None,
    output: options.Answers = None,
    max_new_tokens: options.MaxNewTokensOfPart = None,
    num_beams: options.NumBeams = 1,
    batch_size: options.BatchSize = 8,
    engine: options.Engine = options.ProcessOrRay.PROCESS,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Translate a text, or each text of a file of JSON Lines."""
    from keras_gpt import LanguageModel

    records = _read_records(text, file, "source")
    about = {"model": model, "dtype": dtype, "weights": weights}
    job = _find_job(
        records, file, output, "translation", about, engine, workers, ray_address
    )
    controls = {"max_new_tokens": max_new_tokens, "num_beams": num_beams}
    controls |= {"source": source, "target": target}
    opened = functools.partial(_open, model, dtype, weights)
    texts = [record["source"] for record in records]
    asked = _Asked(opened, LanguageModel.translate, texts, controls, batch_size)
    _answer(asked, "translating", job)


def generate(
    model: options.Model,
    prompt: Annotated[
        str | None,
        typer.Argument(help="Prompt, or text to continue; from standard input if -"),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            help="JSON Lines with the field prompt, also of a storage (s3://...): an "
            "answer a line."
        ),
    ] = None,
    output: options.Answers = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Continue plain text, whatever it was tuned for."),
    ] = False,
    max_new_tokens: options.MaxNewTokensOfAnswer = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    num_beams: options.NumBeams = 1,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends it; may be repeated.")
    ] = None,
    schema: options.Schema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = 8,
    engine: options.Engine = options.ProcessOrRay.PROCESS,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Answer a prompt in the form that the model was tuned for, or continue a text."""
    has_prompt = prompt is not None or file is not None
    records = [{"prompt": ""}]
    if has_prompt:
        records = _read_records(prompt, file, "prompt")
    prompts = [record["prompt"] for record in records]
    about = {"model": model, "dtype": dtype, "weights": weights, "raw": raw}
    about |= options.given(adapter=adapter and str(adapter))
    job = _find_job(
        records, file, output, "answer", about, engine, workers, ray_address
    )
    controls = {"stop": stop or (), "seed": seed, "max_new_tokens": max_new_tokens}
    controls |= options.form(schema, regex, choice)
    if num_beams == 1:
        controls |= options.sampling(
            temperature, top_k, top_p, min_p, repetition_penalty
        )
    else:
        controls |= options.given(repetition_penalty=repetition_penalty)
        controls["num_beams"] = num_beams
    opened = functools.partial(
        _open, model, dtype, weights, adapter=adapter, is_raw=raw
    )
    asked = _Asked(opened, _continue, prompts, controls, batch_size)
    if job is not None and job["engine"] == "ray":
        _answer(asked, "answering", job)  # the model is for the workers to load
        return
    lm = asked.lm
    is_plain = lm.task == "generate"
    if not is_plain:
        note(f"The prompt is taken as {FORMS[lm.task]}; --raw continues plain text.")
        if not has_prompt:
            raise ValueError("Give a prompt, or - for standard input, or --file.")
        if prompt == "-":
            prompts[0] = prompts[0].removesuffix("\n")
    if num_beams == 1 and file is None:
        controls["max_new_tokens"] = _find_length(lm, max_new_tokens)
        stream(lm, *prompts, **controls)
        return
    begin = prompts[0] if is_plain and file is None else ""
    _answer(asked, "answering", job, begin)


def score(
    model: options.Model,
    text: options.Texts = None,
    file: options.TextFile = None,
    output: options.Answers = None,
    batch_size: options.BatchSize = 8,
    engine: options.Engine = options.ProcessOrRay.PROCESS,
    workers: options.Workers = None,
    ray_address: options.RayAddress = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Say how likely a model finds a text, or each text of a file of JSON Lines.

    That is the sum of its tokens' log-probabilities in nats, each given those before
    it, and how many they are. A text must fit into the model's context.
    """
    records = _read_records(text, file, "text")
    about = {"model": model, "dtype": dtype, "weights": weights}
    job = _find_job(records, file, output, "score", about, engine, workers, ray_address)
    opened = functools.partial(_open, model, dtype, weights)
    texts = [record["text"] for record in records]
    _answer(_Asked(opened, _score, texts, {}, batch_size), "scoring", job)


def chat(
    model: options.Model,
    system: Annotated[
        str | None, typer.Option(help="System prompt: what the model shall be.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Answer this one message and end.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = 512,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    schema: options.Schema = None,
    regex: options.Regex = None,
    choice: options.Choice = None,
    seed: options.Seed = 0,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Talk with a model; /help lists what can be done meanwhile.

    Without a terminal, each line of standard input is a message, and answers go to
    standard output.
    """
    from rich.console import Console

    from keras_gpt_cli.conversation import (
        ChatSession,
        Screen,
        describe_model,
        run_lines,
        run_terminal,
    )

    is_terminal = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    with Console(stderr=True).status("Loading the model"):
        lm = load(model, dtype, weights, adapter=adapter)
    screen = Screen(is_terminal)
    session = ChatSession(
        lm,
        screen,
        system=system,
        max_new_tokens=max_new_tokens,
        seed=seed,
        **options.form(schema, regex, choice),
        **options.sampling(temperature, top_k, top_p, min_p, repetition_penalty),
    )
    if is_terminal:
        screen.note(describe_model(lm, model))
        run_terminal(session)
        return
    run_lines(session, sys.stdin if prompt is None else [prompt])
    if session.has_failed:
        raise typer.Exit(2)


def evaluate(
    model: options.Model,
    file: Annotated[
        str | None,
        typer.Option(
            help=f"{options.CORPUS_HELP} \\[default: the run's validation data]"
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="JSON Lines or Parquet with examples of a task: ROUGE of summaries, "
            "BLEU and chrF of translations; or the name of a task of lm-eval."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(help="Only so many examples of the task.", min=1)
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Ask what lm-eval asks as plain text, whatever it was tuned for.",
        ),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the results of the task.")
    ] = None,
    max_new_tokens: options.MaxNewTokens = None,
    num_beams: options.NumBeams = 1,
    batch_size: options.BatchSize = 8,
    text_field: options.TextField = "text",
    encoding: options.Encoding = "utf-8",
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
) -> None:
    """Measure how well a model predicts text, or does a task.

    Of a text: loss, perplexity, bits per byte.
    """
    from keras_gpt import data, runs

    if task is not None:
        lm = load(model, dtype, weights)
        if Path(task).suffix not in (".jsonl", ".gz", ".parquet"):
            has_template = lm.task == "chat" and bool(lm.tasks) and not raw
            _evaluate_harness(lm, task, limit, batch_size, output, has_template)
            return
        _evaluate_task(
            lm,
            task,
            output,
            limit=limit,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            num_beams=num_beams,
        )
        return

    if file is None and not (Path(model) / runs.CONFIG_FILE).is_file():
        raise ValueError(
            f"{model} is no run, which has validation data. Name a text with --file."
        )
    lm = load(model, dtype, weights)
    if file is None:
        result = runs.evaluate_validation(model, lm)
    else:
        result = lm.evaluate(
            data.read_documents(file, text_field=text_field, encoding=encoding)
        )
    print(f"loss:          {result.loss:.4f} nats per token")
    print(f"perplexity:    {result.perplexity:.2f}")
    print(f"bits per byte: {result.bits_per_byte:.4f}")
    print(f"tokens:        {result.num_tokens:,}")


def _evaluate_task(lm, task, output, **controls):
    """Show how well a model does the task of a file of examples."""
    from keras_gpt import evaluation
    from keras_gpt.files import write_json

    with _warnings_as_notes(), progress("answering", controls["limit"]) as on_progress:
        result = evaluation.evaluate_task(lm, task, on_progress=on_progress, **controls)
    rows = {
        "task": f"{result.task}, {result.num_examples:,} examples",
        "loss of the answers": f"{result.loss:.4f} nats per token",
        "perplexity": f"{result.perplexity:.2f}",
        "bits per byte": f"{result.bits_per_byte:.4f}",
    }
    for metric, value in result.scores.items():
        rows[metric] = f"{value:.2f}"
        if metric in result.intervals:
            low, high = result.intervals[metric]
            rows[metric] += f" (95%: {low:.2f} to {high:.2f})"
    for metric, signature in result.signatures.items():
        rows[f"{metric} signature"] = signature
    print_table(rows)
    if output is not None:
        write_json(output, dataclasses.asdict(result))
        note(f"Wrote the results and what the model wrote to {output}.")


def _evaluate_harness(lm, task, limit, batch_size, output, has_template):
    """Show how well a model does a task of lm-eval."""
    from keras_gpt import evaluation
    from keras_gpt.files import write_json

    model = evaluation.lm_eval_model(lm, batch_size)
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    if task not in manager.all_tasks and Path(task).suffix not in (".yaml", ".yml"):
        raise ValueError(
            f"lm-eval has no task {task!r}; `lm-eval ls tasks` lists them. A file with "
            "examples ends in .jsonl, .jsonl.gz or .parquet."
        )
    form = "as messages, as it was tuned; --raw is plain text"
    note(f"The model is asked {form if has_template else 'in plain text'}.")
    results = lm_eval.simple_evaluate(
        model,
        tasks=[task],
        task_manager=manager,
        limit=limit,
        apply_chat_template=has_template,
    )
    for name, found in results["results"].items():
        metrics = {k: v for k, v in found.items() if isinstance(v, int | float)}
        print_table(
            {"task": name, **{k.removesuffix(",none"): v for k, v in metrics.items()}}
        )
    if output is not None:
        write_json(output, results["results"])
        note(f"Wrote the results to {output}.")


@contextlib.contextmanager
def _warnings_as_notes():
    """Show what the package warns of as lines on standard error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", module="keras_gpt")
        warnings.showwarning = lambda message, *_: note(f"Note: {message}")
        yield


def _find_job(records, file, output, answer_field, about, engine, workers, ray_address):
    """What `tasks.answer_records` is told of a file of records; `None` without one."""
    if output is None:
        if engine != "process":
            raise ValueError("--engine is for a --file of JSON Lines with --output.")
        return None
    if file is None or not file.endswith(_RECORDS):
        raise ValueError("--output is for the answers to a --file of JSON Lines.")
    return {
        "records": records,
        "output": output,
        "answer_field": answer_field,
        "about": about,
        "engine": engine,
        "num_workers": workers,
        "ray_address": ray_address,
    }


class _Asked:
    """What is asked of a model, which is loaded when it is first needed.

    Workers of Ray are sent it, each of which then has a model of its own.
    """

    def __init__(self, opened, ask, texts, controls, batch_size):
        self._opened = opened
        self._ask = ask
        self.texts = texts
        self.controls = controls
        self.batch_size = batch_size

    @functools.cached_property
    def lm(self):
        return self._opened()

    def __call__(self, places):
        """The answers to some of the texts, as if all were asked at once."""
        given = {}
        if "seed" in self.controls:
            given["seed"] = [self.controls["seed"] + place for place in places]
        return self.ask([self.texts[i] for i in places], **given)

    def ask(self, texts, **given):
        options = {**self.controls, "batch_size": self.batch_size, **given}
        return self._ask(self.lm, texts, **options)


def _open(model, dtype, weights, instruction=None, *, adapter=None, is_raw=False):
    """Load a model as a command was told to use it."""
    lm = load(model, dtype, weights, adapter=adapter)
    if instruction is not None:
        lm.tasks.setdefault("summarize", {})["instruction"] = instruction
    if is_raw:
        lm.tasks, lm.chat_template = {}, None
    return lm


def _continue(lm, prompts, max_new_tokens, **options):
    return lm.answer(prompts, _find_length(lm, max_new_tokens), **options)


def _find_length(lm, max_new_tokens):
    """Most tokens of an answer, which for plain text isn't what a chat model has."""
    if max_new_tokens is None and lm.task == "generate":
        return 200
    return max_new_tokens


def _score(lm, texts, batch_size, on_progress=None):
    found = []
    for start in range(0, len(texts), batch_size):
        scores = lm.score(texts[start : start + batch_size])
        found += [
            {"log_probability": float(score.sum()), "num_tokens": len(score)}
            for score in scores
        ]
        if on_progress is not None:
            on_progress(len(scores))
    return found


def _answer(asked, what, job, begin=""):
    """Print the answers to texts behind a beginning, or do a job of answering them."""
    from keras_gpt import tasks

    with _warnings_as_notes(), progress(what, len(asked.texts)) as on_progress:
        if job is not None:
            job["about"] |= asked.controls
            given = {"batch_size": asked.batch_size, "on_progress": on_progress}
            tasks.answer_records(asked, asked.texts, **job, **given)
            return
        answers = asked.ask(asked.texts, on_progress=on_progress)
    lines = [a if isinstance(a, str) else json.dumps(a) for a in answers]
    print(begin + "\n".join(lines))


def _read_records(text, file, field):
    """The records that a command is given, with a text each: one, or a file's."""
    if (text is None) == (file is None):
        raise ValueError("Give a text, or - for standard input, or --file; not both.")
    if text is not None:
        return [{field: sys.stdin.read() if text == "-" else text}]
    if not file.endswith(_RECORDS):
        return [{field: Path(file).read_text(encoding="utf-8")}]
    from keras_gpt import data

    records = []
    for place, record in data.read_records(file):
        if not isinstance(record.get(field), str):
            raise ValueError(f"{place}: the field {field!r} is missing or no text.")
        records.append(record)
    return records
