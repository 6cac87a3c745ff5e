import contextlib
import io
import json
import os
import re
import runpy
import sys
import warnings
from pathlib import Path

import keras
import nbclient
import nbformat
import numpy as np
import pytest

import keras_gpt
import keras_gpt.evaluation
import keras_gpt.tokenizers
from keras_gpt.tf_serving import Client
from tests.tf_serving.server import serve

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "colab_quickstart.ipynb"
# of the notebook's process, which has this source tree
ENVIRONMENT = {
    "KERAS_BACKEND": keras.backend.backend(),
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}


def run_example(folder, name, *arguments):
    """What an example prints when it runs in a folder."""
    printed, status = io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(action="default"),  # as for users
    ):
        patch.chdir(folder)
        patch.syspath_prepend(EXAMPLES)
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            status = end.code
    assert not status, printed.getvalue()
    return printed.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder where `train_from_scratch.py` ran, and what it printed."""
    folder = tmp_path_factory.mktemp("train_from_scratch")
    corpus = "".join(
        f"Line {n} says that {n} is followed by {n + 1}.\n" for n in range(600)
    )
    (folder / "corpus.txt").write_text(corpus, encoding="utf-8")
    printed = run_example(
        folder,
        "train_from_scratch.py",
        *("--corpus", "corpus.txt", "--steps", "6"),
        *("--output", "model", "--prompt", "Line 7"),
    )
    return folder, printed


def test_train_from_scratch_learns_saves_and_continues_the_prompt(trained):
    folder, printed = trained
    loss, bits_per_byte = map(
        float, re.search(r"loss ([\d.]+), ([\d.]+) bits per byte", printed).groups()
    )
    assert 0 < bits_per_byte < 8
    lm = keras_gpt.LanguageModel.load(folder / "model")
    # knowing nothing is a loss of log(vocab_size)
    assert loss < float(keras.ops.log(lm.tokenizer.vocab_size)) - 0.1
    continuation = printed[printed.rindex("bits per byte") :].split("Line 7", 1)[1]
    assert continuation.strip()


@pytest.mark.usefixtures("smollm2_file")
def test_chat_with_smollm2_answers_and_remembers(tmp_path):
    printed = run_example(
        tmp_path,
        "chat_with_smollm2.py",
        "What is the capital of France?",
        "In which country is that city?",
        *("--max-new-tokens", "24"),
    )
    first, second = printed.split("> ")[1:]
    assert "Paris" in first
    assert "France" in second
    assert len(re.findall(r"\([\d.]+ tokens/s\)", printed)) == 2


def printed_by(cell):
    """What a notebook's cell wrote to standard output."""
    return "".join(
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def test_notebook_is_valid_and_stores_no_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_notebook_trains_plots_generates_and_loads(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    # what its reader does to switch
    chosen = 'os.environ["KERAS_BACKEND"] = "jax"'
    assert chosen in cells["backend"].source
    cells["backend"].source = cells["backend"].source.replace(
        chosen, chosen.replace("jax", keras.backend.backend())
    )
    # this interpreter, not whichever a kernel of this machine or user names
    kernel = tmp_path / "kernels" / "this_python"
    kernel.mkdir(parents=True)
    keras_gpt.files.write_json(
        kernel / "kernel.json",
        {
            "argv": [
                *(sys.executable, "-m", "ipykernel_launcher"),
                *("-f", "{connection_file}"),
            ],
            "display_name": "This Python",
            "language": "python",
            "env": {**ENVIRONMENT, "KERAS_GPT_STEPS": "2"},
        },
    )
    for name in ("IPYTHONDIR", "JUPYTER_PATH", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("MPLBACKEND", raising=False)  # plots go into the notebook
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="this_python",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert f"on {keras.backend.backend()}, 2 steps" in printed_by(cells["import"])
    assert "image/png" in cells["plot"].outputs[-1].data
    assert len(printed_by(cells["generation"])) > len("The string module ")
    assert keras_gpt.LanguageModel.load(tmp_path / "runs" / "colab")
    assert len(printed_by(cells["loading"])) > 1  # so little trained, often blank


@pytest.fixture(scope="module")
def small_base(tmp_path_factory):
    """The folder of a small chat model with random weights."""
    folder = tmp_path_factory.mktemp("base") / "model"
    end = "<|im_end|>"
    tokenizer = keras_gpt.BytePairTokenizer.train(
        ["Translate from English to German."],
        300,
        special_tokens=["<|endoftext|>", end],
    )
    config = keras_gpt.GPTConfig(
        vocab_size=300,
        context_length=512,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    template = "{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}"
    keras_gpt.LanguageModel(
        keras_gpt.GPT(config),
        tokenizer,
        chat_template=keras_gpt.tokenizers.ChatTemplate(template),
        stop_ids=[tokenizer.token_id(end)],
    ).save(folder)
    return folder


def test_finetune_summarize_compares_what_it_should(small_base, tmp_path):
    printed = run_example(
        tmp_path,
        "finetune_summarize.py",
        *("out", "--model", small_base, "--dtype", "float32"),
        *("--limit", "6", "--scratch-epochs", "1"),
    )
    for row in ("first sentence", "before", "after", "small GPT from scratch"):
        assert row in printed
    assert "6 texts of modules that were not trained on" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # the same words as by hand
    first = results["results"]["first sentence"]["scores"]
    expected = keras_gpt.evaluation.score_summaries(
        results["summaries"]["first sentence"], results["references"]
    )
    assert first == pytest.approx(expected.scores)
    tuned = keras_gpt.LanguageModel.load(tmp_path / "out" / "tuned")
    assert "docstring" in tuned.tasks["summarize"]["instruction"]


def test_tuned_model_answers_alike_here_and_served(small_base, tmp_path):
    printed = run_example(
        tmp_path,
        "tune_and_serve.py",
        *("out", "--model", small_base, "--dtype", "float32"),
        *("--limit", "6", "--test-limit", "4", "--max-new-tokens", "8"),
    )
    assert len(re.findall(r"(before|after): loss [\d.]+, ROUGE-L [\d.]+", printed)) == 2
    served = tmp_path / "out" / "served" / "docs"
    wanted = json.loads((tmp_path / "out" / "answers.json").read_text())
    texts = list(wanted)
    lm = keras_gpt.LanguageModel.load(tmp_path / "out" / "tuned")
    assert list(wanted.values()) == lm.answer(texts, 8)
    # the server's double calls TensorFlow's C API
    with serve(served) as server, Client(server.grpc, model="docs") as client:
        assert client.summarize(texts) == list(wanted.values())


def test_finetune_translate_compares_what_it_should(small_base, tmp_path):
    pytest.importorskip("django")
    printed = run_example(
        tmp_path,
        "finetune_translate.py",
        *("out", "--package", "django", "--model", small_base, "--dtype", "float32"),
        *("--limit", "6", "--test-limit", "6"),
    )
    assert "chrF" in printed
    assert "6 texts that were not trained on" in printed
    tuned = keras_gpt.LanguageModel.load(tmp_path / "out" / "tuned")
    assert tuned.tasks["translate"]["languages"] == [["en", "de"]]


def test_a_law_of_losses_is_found_again(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    import scaling_law

    parameters = np.array([1e5, 3e5, 1e6] * 3)
    tokens = np.repeat([1e5, 3e5, 9e5], 3)
    law = 1.5, 40.0, 0.35, 120.0, 0.4
    losses = scaling_law.loss_by(law, parameters, tokens)
    found = scaling_law.fit_law(parameters, tokens, losses)
    np.testing.assert_allclose(found, law, rtol=1e-6)
