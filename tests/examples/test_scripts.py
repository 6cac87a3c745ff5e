import contextlib
import io
import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import keras_gpt
import keras_gpt.evaluation
import keras_gpt.tokenizers

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


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


def test_finetune_summarize_compares_what_it_should(small_base, tmp_path):
    printed = run_example(
        tmp_path,
        "finetune_summarize.py",
        *("out", "--model", small_base, "--dtype", "float32"),
        *("--limit", "3", "--scratch-epochs", "1"),
    )
    for row in ("first sentence", "before", "after", "small GPT from scratch"):
        assert row in printed
    assert "3 texts of modules that were not trained on" in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # the same words as by hand
    first = results["results"]["first sentence"]["scores"]
    expected = keras_gpt.evaluation.score_summaries(
        results["summaries"]["first sentence"], results["references"]
    )
    assert first == pytest.approx(expected.scores)
    tuned = keras_gpt.LanguageModel.load(tmp_path / "out" / "tuned")
    assert "docstring" in tuned.tasks["summarize"]["instruction"]


def test_finetune_translate_compares_what_it_should(small_base, tmp_path):
    pytest.importorskip("django")
    printed = run_example(
        tmp_path,
        "finetune_translate.py",
        *("out", "--package", "django", "--model", small_base, "--dtype", "float32"),
        *("--limit", "6", "--test-limit", "3"),
    )
    assert "chrF" in printed
    assert "3 texts that were not trained on" in printed
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
