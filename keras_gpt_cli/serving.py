"""The command that serves a model over HTTP."""

from pathlib import Path
from typing import Annotated

import typer

from keras_gpt_cli import options
from keras_gpt_cli.loading import load
from keras_gpt_cli.output import note


def serve(
    model: options.Model,
    name: Annotated[
        str | None,
        typer.Option(help="What requests call it. \\[default: MODEL's last part]"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 for any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="KERAS_GPT_API_KEY",
            help="Key that requests must carry. Others on this machine see it on a "
            "command line, but not in the environment.",
        ),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name that requests may call this machine by, besides localhost; "
            "may be repeated; * for any."
        ),
    ] = None,
    slots: Annotated[int, typer.Option(help="Answers written at once.", min=1)] = 8,
    queue: Annotated[
        int, typer.Option(help="Answers that wait; more are refused.", min=0)
    ] = 64,
    max_tokens: Annotated[
        int, typer.Option(help="Most tokens of an answer.", min=1)
    ] = 2048,
    timeout: Annotated[
        float, typer.Option(help="Seconds that a request may take.", min=0)
    ] = 600,
    grace: Annotated[
        float,
        typer.Option(help="Seconds to finish what runs, after SIGTERM.", min=0),
    ] = 30,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FOLDER",
            help="An adapter of MODEL, which requests call NAME; may be repeated.",
        ),
    ] = None,
    dtype: options.Dtype = None,
    weights: options.StoredWeights = None,
    revision: options.Revision = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's interface has it, and a page to try it."""
    from keras_gpt.runs import CONFIG_FILE
    from keras_gpt.server import Settings, run

    folders = _read_adapters(adapter or ())
    settings = Settings(
        name=name or Path(model).name.removesuffix(".gguf"),
        host=host,
        port=port,
        api_key=api_key,
        allowed_hosts=tuple(allowed_host or ()),
        num_slots=slots,
        max_waiting=queue,
        max_tokens=max_tokens,
        timeout=timeout,
        grace=grace,
        run=model if (Path(model) / CONFIG_FILE).is_file() else None,
    )
    if host not in ("127.0.0.1", "localhost", "::1") and api_key is None:
        note("Anyone who reaches this machine can use the model: no key is asked for.")
    lm = load(model, dtype, weights, revision, merge=True)
    if folders:
        lm.load_adapters(folders)
    run(lm, settings)


def _read_adapters(texts):
    """Folders by names, from `NAME=FOLDER` each."""
    folders = {}
    for text in texts:
        name, _, folder = text.partition("=")
        if not name or not folder or name in folders:
            raise ValueError(
                "`--adapter` must be NAME=FOLDER, each with another name. Received: "
                f"{text!r}."
            )
        folders[name] = folder
    return folders
