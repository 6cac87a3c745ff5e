import io
import json
import signal

import keras
import numpy as np
import pytest
from rich.console import Console

from keras_gpt import GPT, BytePairTokenizer, GPTConfig, LanguageModel, training
from keras_gpt.runs import FinetuneConfig, finetune, read_log, read_result

WORDS = ("ein", "zwei", "drei", "vier")
NUMBERS = ("one", "two", "three", "four")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with an untrained model."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = BytePairTokenizer.train(
        [" ".join((*WORDS, *NUMBERS, "English: German:")) * 4], 300
    )
    keras.utils.set_random_seed(1)
    model = GPT(
        GPTConfig(
            vocab_size=300,
            context_length=64,
            embedding_dimension=32,
            num_layers=2,
            num_heads=2,
        )
    )
    # as large as trained ones are: what stays frozen bounds the logits
    [embeddings] = [v for v in model.embedding.weights if v.shape[0] == 300]
    embeddings.assign(20 * keras.ops.convert_to_numpy(embeddings))
    LanguageModel(model, tokenizer).save(folder)
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Numbers to translate, in a file."""
    path = tmp_path_factory.mktemp("examples") / "train.jsonl"
    records = [
        {
            "source": source,
            "target": target,
            "source_language": "en",
            "target_language": "de",
        }
        for source, target in zip(NUMBERS, WORDS, strict=True)
    ]
    path.write_text("\n".join(json.dumps(record) for record in records * 5))
    return path


def make_config(base, examples, output, **changes):
    fields = {
        "model": str(base),
        "data": str(examples),
        "output": str(output),
        "lora_rank": 8,
        "steps": 6,
        "evaluate_every": 2,
        "batch_size": 4,
        "sequence_length": 32,
        "learning_rate": 1e-2,
        "sample_tokens": 0,
        # TensorFlow's XLA takes longer to compile than all else here
        "jit_compile": False if keras.backend.backend() == "tensorflow" else None,
    }
    return FinetuneConfig(**{**fields, **changes})


def run(config, **kwargs):
    console = Console(file=io.StringIO(), width=200)
    return finetune(config, console=console, **kwargs), console.file.getvalue()


def test_an_adapter_learns_a_task_and_is_loaded_with_its_base(base, examples, tmp_path):
    config = make_config(
        base, examples, tmp_path / "run", steps=60, evaluate_every=30, sample_tokens=4
    )
    lm, output = run(config)
    counts = training.count_trainable(lm.model)
    assert f"Training {counts['trainable']:,} of {counts['parameters']:,}" in output
    assert "\n18 examples of" in output  # and two to validate
    assert lm.translate(list(NUMBERS), 8, source="en", target="de") == list(WORDS)
    with pytest.raises(ValueError, match="wasn't tuned to translate de to en"):
        lm.translate("ein", source="de", target="en")
    adapter = tmp_path / "run" / "adapter.safetensors"
    assert adapter.stat().st_size < 100_000
    log = read_log(tmp_path / "run" / "log.csv")
    assert log["val_loss"][-1] < 0.5
    assert read_result(tmp_path / "run")["best_step"] in (30, 60)
    assert (tmp_path / "run" / "loss.png").is_file()
    # whole only when merged
    with pytest.raises(ValueError, match=r"has an adapter. Call lm.merge_adapter"):
        lm.save(tmp_path / "merged")
    lm.merge_adapter()
    lm.save(tmp_path / "merged")
    merged = LanguageModel.load(tmp_path / "merged")
    assert merged.translate("two", 8, source="en", target="de") == "zwei"
    assert merged.model.config.document_separator_id is None


def test_all_weights_are_tuned_and_saved_as_a_whole_model(base, examples, tmp_path):
    config = make_config(base, examples, tmp_path, lora_rank=0, learning_rate=3e-3)
    lm, output = run(config)
    assert "(100.0%)" in output
    assert not training.has_lora(lm.model)
    before = LanguageModel.load(base).model.weights
    after = lm.model.weights
    changed = [
        not np.array_equal(*map(keras.ops.convert_to_numpy, pair))
        for pair in zip(before, after, strict=True)
    ]
    assert all(changed)
    assert lm.tasks == {"translate": {"languages": [["en", "de"]]}}


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    """Pairs of answers of which one is better, in a file."""
    path = tmp_path_factory.mktemp("preferences") / "pairs.jsonl"
    records = [
        {"prompt": f"{source} German:", "chosen": " drei", "rejected": " vier"}
        for source in NUMBERS
    ]
    path.write_text("\n".join(map(json.dumps, records * 3)))
    return path


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("examples", {"lora_dropout": 0.2}),
        ("examples", {"lora_rank": 0}),
        ("preferences", {}),
    ],
)
def test_a_run_that_goes_on_equals_one_never_stopped(
    base, request, tmp_path, signalled, file, changes
):
    file = request.getfixturevalue(file)
    changes = {"evaluate_every": 3, **changes}
    whole, _ = run(make_config(base, file, tmp_path / "whole", **changes))
    stopped = make_config(base, file, tmp_path / "stopped", **changes)
    # amid the second epoch, where the means are of its first half
    with signalled(signal.SIGINT, 4), pytest.raises(KeyboardInterrupt):
        run(stopped)
    kept = (tmp_path / "stopped" / "run.yaml").read_bytes()
    with pytest.raises(ValueError, match="lora_rank from"):
        run(FinetuneConfig(output=stopped.output, lora_rank=3), resume=True)
    assert (tmp_path / "stopped" / "run.yaml").read_bytes() == kept
    resumed, output = run(FinetuneConfig(output=stopped.output), resume=True)
    assert "going on at step 4" in output
    for ours, theirs in zip(
        resumed.model.trainable_variables, whole.model.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (ours, theirs)), err_msg=ours.path
        )
    log, expected = (
        read_log(tmp_path / name / "log.csv") for name in ("stopped", "whole")
    )
    for name in expected.keys() - {"tokens_per_second", "utilisation"}:
        np.testing.assert_array_equal(log[name], expected[name])


def test_a_frozen_base_in_int8_is_tuned(base, examples, tmp_path):
    lm, _ = run(make_config(base, examples, tmp_path, quantize="int8", dtype="float32"))
    assert lm.model.quantization is None  # the base as it is on disk
    log = read_log(tmp_path / "log.csv")
    assert log["val_loss"][-1] < log["val_loss"][0]


@pytest.mark.parametrize("changes", [{}, {"lora_rank": 0}])
def test_pairs_of_answers_teach_which_is_better(base, preferences, tmp_path, changes):
    config = make_config(
        base, preferences, tmp_path / "run", steps=16, evaluate_every=8
    )
    lm, output = run(config.replaced(**changes))
    assert "\n11 pairs of answers: 16 steps" in output
    log = read_log(tmp_path / "run" / "log.csv")
    assert log["val_loss"][-1] < 0.5 < np.log(2)
    assert log["val_accuracy"][-1] == 1
    before = LanguageModel.load(base)

    def margin(model):
        scores = model.score(["one German: drei", "one German: vier"])
        return scores[0].sum() - scores[1].sum()

    assert margin(lm) > margin(before) + 1


def test_numbers_of_steps_follow_from_epochs():
    config = FinetuneConfig(epochs=3, batch_size=4)
    planned = config.planned(num_rows=100)
    assert (planned.steps, planned.evaluate_every, planned.warmup_steps) == (75, 15, 3)
    assert config.planned(num_rows=3).steps == 3
    assert FinetuneConfig(steps=7).planned(num_rows=9).evaluate_every == 1
    assert FinetuneConfig(lora_rank=0).planned(num_rows=4).learning_rate == 5e-5


def test_what_does_not_fit_is_refused(base, examples, tmp_path):
    with pytest.raises(ValueError, match="`quantize` needs adapters"):
        make_config(base, examples, tmp_path, quantize="int8", lora_rank=0)
    with pytest.raises(ValueError, match=r"Unknown field.*lora_rank"):
        make_config(base, examples, tmp_path, lora_rang=3)
    with pytest.raises(ValueError, match="`quantize` must be 'int8'"):
        make_config(base, examples, tmp_path, quantize="int4")
    (tmp_path / "empty.jsonl").write_text("")
    empty = make_config(base, tmp_path / "empty.jsonl", tmp_path / "a")
    with pytest.raises(ValueError, match=r"empty\.jsonl has no records"):
        run(empty.replaced(instruction="Translate."))
    assert not (tmp_path / "a" / "run.yaml").exists()
    with pytest.raises(FileNotFoundError, match="no examples at"):
        run(make_config(base, tmp_path / "none.jsonl", tmp_path / "a"))
    (tmp_path / "one.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    with pytest.raises(ValueError, match="has 1 records, of which none would be left"):
        run(make_config(base, tmp_path / "one.jsonl", tmp_path / "b"))
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'
        '{"prompt": "a", "chosen": "b"}'
    )
    with pytest.raises(ValueError, match="line 2: the field 'rejected' is missing"):
        run(make_config(base, tmp_path / "pairs.jsonl", tmp_path / "d"))
    (tmp_path / "two.jsonl").write_text(
        '{"prompt": "a", "completion": "b"}\n{"prompt": "a"}'
    )
    with pytest.raises(ValueError, match="line 2: the field 'completion'"):
        run(make_config(base, tmp_path / "two.jsonl", tmp_path / "c"))
