"""Write the table of docs/support.md: `python docs/make_support.py`.

Each cell names a test. On which backends it runs, its marks say: pytest is asked, once
for each backend, as `make test` asks.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

BACKENDS = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
PRECISIONS = ("float32", "bfloat16", "float16", "int8 weights")
PAGE = Path(__file__).parent / "support.md"

# feature: for each precision a test that shows it
MODEL = "tests/test_model.py::"
GENERATION = "tests/generation/"
TRAINING = "tests/training/"
FEATURES = {
    "logits, as NumPy computes them": {
        "float32": f"{MODEL}test_logits_and_scores_are_those_of_numpy",
        "bfloat16": "tests/layers/test_every_layer.py::test_dtype_policy_is_honoured",
        "int8 weights": f"{MODEL}test_few_bits_change_logits_little_and_are_saved",
    },
    "training": {
        "float32": f"{MODEL}test_fit_with_the_defaults_lowers_the_loss[float32]",
        "bfloat16": f"{MODEL}"
        "test_fit_with_the_defaults_lowers_the_loss[mixed_bfloat16]",
        "float16": f"{MODEL}test_fit_with_the_defaults_lowers_the_loss[mixed_float16]",
    },
    "Muon": {"float32": f"{TRAINING}test_recipe.py::test_muon_trains"},
    "accumulated batches": {
        "float32": f"{TRAINING}test_recipe.py::"
        "test_an_accumulated_step_equals_adamw_by_numpy"
    },
    "`remat`": {
        "float32": "tests/test_loss.py::"
        "test_remat_gives_the_same_gradients_with_the_same_dropout"
    },
    "the loss without logits": {
        "float32": "tests/test_loss.py::"
        "test_the_loss_from_hidden_states_is_that_from_logits"
    },
    "packed documents": {"float32": f"{MODEL}test_packed_documents_equal_each_alone"},
    "exact resume": {
        "float32": f"{TRAINING}test_state.py::"
        "test_a_resumed_run_equals_one_never_stopped_bit_for_bit",
        "bfloat16": f"{TRAINING}test_state.py::test_bfloat16_weights_come_back_exactly",
    },
    "LoRA": {
        "float32": f"{TRAINING}test_lora.py::test_merged_equals_unmerged",
        "bfloat16": f"{TRAINING}test_lora.py::"
        "test_small_steps_are_not_lost_in_bfloat16",
        "int8 weights": "tests/runs/test_finetuning.py::"
        "test_a_frozen_base_in_int8_is_tuned",
    },
    "DPO": {
        "float32": f"{TRAINING}test_preference.py::"
        "test_adapters_learn_what_is_preferred_to_the_base",
        "bfloat16": f"{TRAINING}test_preference.py::"
        "test_half_precision_keeps_margins_exact",
    },
    "several devices": {
        "float32": f"{TRAINING}test_devices.py::test_devices_compute_what_one_does"
    },
    "generating, greedy and sampled": {
        "float32": f"{GENERATION}test_generate.py::"
        "test_each_row_is_what_it_would_be_alone",
        "bfloat16": f"{GENERATION}test_generate.py::test_half_precision_generates",
    },
    "beams": {
        "float32": f"{GENERATION}test_beam.py::"
        "test_beams_of_a_ragged_batch_are_those_of_each_prompt"
    },
    "prompt lookup": {
        "float32": f"{GENERATION}test_lookup.py::test_text_is_that_without_lookup"
    },
    "prompts that come and go": {
        "float32": f"{GENERATION}test_slots.py::"
        "test_rows_that_come_and_go_are_what_each_is_alone"
    },
    "scores": {
        "float32": f"{GENERATION}test_scoring.py::"
        "test_scores_equal_log_softmax_by_numpy"
    },
    "models of Hugging Face": {
        "float32": "tests/checkpoints/test_huggingface.py::"
        "test_logits_equal_those_of_transformers",
        "bfloat16": "tests/checkpoints/test_huggingface.py::"
        "test_a_bfloat16_model_keeps_the_bits_of_a_bfloat16_file",
    },
    "GGUF files": {
        "float32": "tests/checkpoints/test_gguf.py::test_what_is_written_is_read_back",
        "bfloat16": "tests/checkpoints/test_gguf.py::"
        "test_half_precision_rounds_matrices_alone",
    },
    "SavedModels": {
        "float32": "tests/export/test_saved_model.py::"
        "test_served_text_equals_generated_text",
        "int8 weights": "tests/export/test_saved_model.py::"
        "test_weights_in_fewer_bits_take_less_room",
    },
    "exports for OpenVINO": {
        "float32": "tests/export/test_openvino_folder.py::test_text_is_that_of_keras",
        "int8 weights": "tests/export/test_openvino_folder.py::"
        "test_fewer_bits_take_less_room_and_cost_little",
    },
    "the server": {
        "float32": "tests/server/test_openai.py::"
        "test_a_completion_is_what_the_model_writes"
    },
}


class Collected:
    """A plugin of pytest that notes which tests would run.

    Args:
        is_all: Whether `make test` runs all tests on this backend, or those that are
            marked `every_backend`.
    """

    def __init__(self, is_all):
        self.is_all = is_all
        self.names = []

    def pytest_collection_finish(self, session):
        """Note them."""
        for item in session.items:
            skips = [mark.args[0] for mark in item.iter_markers("skipif")]
            skips += [True for _ in item.iter_markers("skip")]  # no parameters are left
            if not any(skips) and (
                self.is_all or item.get_closest_marker("every_backend")
            ):
                self.names.append(item.nodeid)


def collect():
    """Print, as JSON, the tests that run on this process's backend."""
    import pytest

    plugin = Collected(os.environ["KERAS_BACKEND"] == "torch")
    files = {
        test.split("::")[0] for tests in FEATURES.values() for test in tests.values()
    }
    pytest.main([*sorted(files), "--collect-only", "-qq"], plugins=[plugin])
    sys.stdout.write(f"\n{json.dumps(plugin.names)}\n")


def names_on(backend):
    """The tests that run on a backend."""
    process = subprocess.run(
        [sys.executable, __file__, "collect"],
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(process.stdout.splitlines()[-1])


def is_run(test, names):
    """Whether a test is among those that run; it may be `None`."""
    # without parameters it stands for all of them
    alike = re.compile(rf"{re.escape(test or '')}(\[.*)?")
    return test is not None and any(map(alike.fullmatch, names))


def make_table():
    """The table, in Markdown."""
    names = {backend: names_on(backend) for backend in BACKENDS}

    def cell(test):
        if test is None:
            return ""
        on = [shown for name, shown in BACKENDS.items() if is_run(test, names[name])]
        if not on:
            raise ValueError(f"No backend runs {test}.")
        return "all" if len(on) == len(BACKENDS) else ", ".join(on)

    rows = [
        [feature, *(cell(tests.get(precision)) for precision in PRECISIONS)]
        for feature, tests in FEATURES.items()
    ]
    lines = [["", *PRECISIONS], ["---"] * (1 + len(PRECISIONS)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main():
    """Put the table into the page."""
    text = PAGE.read_text("utf-8")
    before, after = "<!-- docs/make_support.py -->\n", "<!-- end -->"
    head, tail = text.split(before)[0], text.split(after)[1]
    PAGE.write_text(f"{head}{before}\n{make_table()}\n{after}{tail}", "utf-8")


if __name__ == "__main__":
    collect() if sys.argv[1:] == ["collect"] else main()
