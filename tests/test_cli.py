import importlib
import io
import json
import os
import re
import shlex
import signal
import string
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

import keras_gpt
import keras_gpt_cli
from keras_gpt import (
    GPT,
    BytePairTokenizer,
    CharacterTokenizer,
    GPTConfig,
    LanguageModel,
    checkpoints,
)
from keras_gpt.tokenizers import ChatTemplate

# each command calls functions that are tested on every backend

TEXT = "".join(f"{i} bottles of beer on the wall, {i} bottles.\n" for i in range(300))
COLD = {"temperature": 0}
TINY = ("embedding_dimension=16", "num_layers=1", "num_heads=2", "context_length=16")


@pytest.fixture
def run(monkeypatch, capfd):
    """Run the command in this process; returns status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["keras-gpt", *map(str, arguments)])
        with pytest.raises(SystemExit) as raised:
            keras_gpt_cli.main()
        output, errors = capfd.readouterr()
        return raised.value.code or 0, output, errors

    return run


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def model(tmp_path):
    tokenizer = CharacterTokenizer.train([TEXT], progress=False)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=16,
        embedding_dimension=16,
        num_layers=1,
        num_heads=2,
    )
    LanguageModel(GPT(config), tokenizer).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def foreign(tmp_path):
    """A small Llama in Hugging Face's format, its language model and its folder."""
    end = "<|endoftext|>"
    tokenizer = BytePairTokenizer.train([TEXT], 270, special_tokens=[end])
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=64,
        embedding_dimension=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        position_embedding="rotary",
        normalization="rms_norm",
        activation="swiglu",
        use_bias=False,
    )
    template = ChatTemplate("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    lm = LanguageModel(GPT(config), tokenizer, chat_template=template)
    lm.save_huggingface(tmp_path / "foreign")
    return lm, tmp_path / "foreign"


def assert_one_line_error(result, *parts):
    status, _, errors = result
    assert status == 2
    assert "Traceback" not in errors
    assert errors.count("Error: ") == 1
    error = errors.splitlines()[-1]  # after the progress of what went well
    assert error.startswith("Error: ")
    for part in parts:
        assert part in error


@pytest.mark.parametrize(
    "command",
    [
        *("quickstart", "tokenize", "prepare", "train", "generate", "chat", "score"),
        *("evaluate", "info", "import", "write", "export"),
        *("preview", "finetune", "summarize", "translate", "attention"),
        *("runs", "plot"),
    ],
)
def test_every_command_explains_itself(run, command):
    status, output, _ = run(command, "--help")
    assert status == 0
    assert "Usage" in output


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (("generate", "x", "--max-length", 9), "--max-new-tokens"),
        (("train", "--learning-rate", 1), "learning_rate=VALUE"),
        (("finetune", "--rank", 8), "lora_rank=VALUE"),
    ],
)
def test_an_unknown_option_is_named_with_what_was_meant(run, arguments, meant):
    status, _, errors = run(*arguments)
    assert status == 2
    assert f"(Possible options: {meant})" in re.sub(r"[\s│]+", " ", errors)


def test_the_version_is_printed(run):
    assert run("--version")[1] == f"keras-gpt {keras_gpt.__version__}\n"


def test_help_says_defaults_that_depend_on_the_model(run):
    _, output, _ = run("chat", "--help")
    assert "[default: the model's, or 0.8]" in re.sub(r"[\s│]+", " ", output)


def test_help_does_not_load_keras():
    program = (
        "import sys, keras_gpt_cli\n"
        "sys.argv = ['keras-gpt', '--help']\n"
        "try:\n    keras_gpt_cli.main()\n"
        "except SystemExit:\n    print('keras' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("train", None, "glibc.malloc.hugetlb=1"),
        ("generate", None, "None"),
        ("train", "glibc.malloc.check=0", "glibc.malloc.check=0"),
    ],
)
def test_training_runs_in_a_process_with_large_pages(command, given, expected):
    program = (
        "import os, keras_gpt_cli\n"
        "keras_gpt_cli.main = lambda: print(os.environ.get('GLIBC_TUNABLES'))\n"
        "keras_gpt_cli.start()"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if given:
        environment["GLIBC_TUNABLES"] = given
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not (pages.is_file() and "[madvise]" in pages.read_text()):
        expected = str(given)  # all or none have them
    result = subprocess.run(
        [sys.executable, "-c", program, command, "--a-flag"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == f"{expected}\n"


def test_from_text_to_generated_text_command_by_command(run, tmp_path, corpus):
    tokenizer, data, output = (tmp_path / name for name in ("tok", "data", "run"))
    assert run("tokenize", corpus, tokenizer, "--vocab-size", 280)[0] == 0
    assert run("prepare", corpus, data, "--tokenizer", tokenizer)[0] == 0
    status, printed, _ = run(
        "train",
        "--output",
        output,
        f"data={data}",
        f"tokenizer={tokenizer}",
        f"model={{{', '.join(TINY).replace('=', ': ')}}}",
        "steps=4",
        "evaluate_every=2",
        "batch_size=4",
        "jit_compile=false"
        if keras.backend.backend() == "tensorflow"
        else "jit_compile=null",
    )
    assert status == 0
    loss = float(printed.split("validation_loss: ")[1].split()[0])

    status, generated, _ = run("generate", output, "12 bottles", "--max-new-tokens", 9)
    assert status == 0
    assert generated.startswith("12 bottles")
    assert generated != "12 bottles\n"
    beams = run("generate", output, "1", "--num-beams", 2, "--max-new-tokens", 3)
    assert beams[0] == 0

    status, evaluated, _ = run("evaluate", output)
    # both are printed to four digits
    assert float(evaluated.split()[1]) == pytest.approx(loss, abs=1.1e-4)
    assert "bits per byte" in run("evaluate", output, "--file", corpus)[1]
    status, described, _ = run("info", output)
    assert status == 0
    assert "BytePairTokenizer" in described
    described = float(re.search(r"validation loss +([\d.]+)", described)[1])
    assert described == pytest.approx(loss, abs=1e-3)

    status, listed, _ = run("runs", output)
    assert status == 0
    assert re.search(rf"done +4 of 4 +{loss:.4f} +[\d,]+ *$", listed, re.MULTILINE)
    status, _, notes = run("plot", output, "-o", tmp_path / "runs.svg")
    assert status == 0
    assert notes.endswith(f"Drew 1 run in {tmp_path / 'runs.svg'}.\n")
    assert "</svg>" in (tmp_path / "runs.svg").read_text()
    assert_one_line_error(run("runs", tmp_path / "tok"), "There is no run in")


def test_quickstart_trains_and_says_what_comes_next(run, tmp_path, corpus):
    output = tmp_path / "quick"
    status, generated, errors = run(
        "quickstart", "--corpus", corpus, "--output", output, "--steps", 2
    )
    assert status == 0
    assert len(generated) > 10
    for part in (
        "Training loss",
        "validation loss",
        "bits per byte",
        "keras-gpt generate",
        "pip install 'keras-gpt[server]'",
    ):
        assert part in errors
    assert (output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((output / "events").iterdir())


def test_the_attention_of_a_model_is_drawn(run, model, tmp_path):
    picture = tmp_path / "of" / "model.png"
    status, _, errors = run("attention", model, "12 bottles", "-o", picture)
    assert status == 0
    assert f"Drew 1 layers of 2 heads, 10 tokens, in {picture}." in errors
    assert picture.read_bytes().startswith(b"\x89PNG")
    other = ("attention", model, "12", "--layer")
    assert_one_line_error(run(*other, 1), "`layers` must be some from 0 to 0", "[1]")
    assert_one_line_error(run(*other, 0, "-o", "a.jpg"), "ends in .png", "a.jpg")


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (b"", ["empty"]),
        (b"\x00\x01\x02" * 100, ["corpus.bin", "binary"]),
        (b"caf\xe9 au lait", ["corpus.bin", "byte 3", "encoding"]),
    ],
    ids=["empty", "binary", "latin-1"],
)
def test_a_bad_corpus_is_a_one_line_error(run, tmp_path, content, parts):
    path = tmp_path / "corpus.bin"
    path.write_bytes(content)
    path = path.rename(path.with_suffix(".bin.txt"))
    assert_one_line_error(run("tokenize", path, tmp_path / "out"), *parts)
    assert not (tmp_path / "out").exists()


def test_a_corpus_shorter_than_the_context_is_a_one_line_error(run, tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("To be, or not to be.")
    result = run(
        "train",
        "--corpus",
        path,
        "--output",
        tmp_path / "run",
        "tokenizer=characters",
        "steps=1",
    )
    assert_one_line_error(result, "sequence_length")


def test_a_run_is_tried_with_words_of_its_corpus_and_names_are_taken_as_they_are(
    run, tmp_path
):
    corpus = tmp_path / "a: b #1.txt"  # as YAML this would be something else
    corpus.write_text("0123456789" * 200)
    output = tmp_path / "run #1"
    model = f"model={{{', '.join(TINY).replace('=', ': ')}}}"
    train = ("train", "--corpus", corpus, "--output", output, "tokenizer=characters")
    settings = ("steps=80", "batch_size=8", "learning_rate=3e-2", "sample_tokens=0")
    assert try_it(run, run(*train, model, *settings)).strip() in corpus.read_text()
    imported = run("import", output, tmp_path / "ours")  # no letters to begin with
    assert try_it(run, imported).strip() in corpus.read_text()


def test_bad_arguments_are_one_line_errors(run, tmp_path, corpus, model):
    train = ("train", "--corpus", corpus, "--output", tmp_path / "run")
    characters = "tokenizer=characters"
    unknown = run(*train, characters, "model.preset=gpt2_mediun")
    assert_one_line_error(unknown, "'gpt2_medium'")
    assert_one_line_error(run(*train, "learning_rat=1"), "'learning_rate'")
    assert_one_line_error(run(*train, "learning_rate=fast"), "learning_rate")
    small = run(*train, characters, "model.vocab_size=3", "steps=1")
    assert_one_line_error(small, "vocab_size")
    generate = ("generate", model, "1 bottle")
    assert_one_line_error(run(*generate, "--temperature", -1), "temperature")
    assert_one_line_error(run(*generate, "--top-p", 0), "top_p")
    assert_one_line_error(run("generate", tmp_path / "nowhere", "x"), "nowhere")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("summarize nowhere a --batch-size 0", "--batch-size"),
        ("translate nowhere a --num-beams -1", "--num-beams"),
        ("evaluate nowhere --batch-size 0", "--batch-size"),
        ("evaluate nowhere --task a.jsonl --limit 0", "--limit"),
        ("evaluate nowhere --file a --encoding nope", "`encoding`"),
        ("evaluate nowhere --max-new-tokens -1", "`max_new_tokens`"),
        ("preview nowhere a --count -1", "--count"),
        ("preview nowhere a --sequence-length 0", "--sequence-length"),
        ("generate nowhere a --top-p nan", "`top_p`"),
        ("generate nowhere a --num-beams 9999999999", "--num-beams"),
        ("chat nowhere --seed -1", "`seed`"),
        ("chat nowhere --top-k -1", "`top_k`"),
        ("export nowhere a --max-prompt-tokens 0", "--max-prompt-tokens"),
    ],
)
def test_nonsense_is_refused_before_a_model_is_looked_for(run, command, named):
    status, output, errors = run(*command.split())
    assert status == 2
    assert named in errors
    assert "nowhere" not in errors
    assert "Traceback" not in errors
    assert output == ""


def test_a_truncated_checkpoint_is_a_one_line_error(run, model):
    weights = model / "model.weights.h5"
    weights.write_bytes(weights.read_bytes()[:2000])
    assert_one_line_error(run("generate", model, "1"), "model.weights.h5", "truncated")


def test_a_checkpoint_of_another_architecture_is_a_one_line_error(run, model):
    config = model / "config.json"
    config.write_text(config.read_text().replace('dimension": 16', 'dimension": 32'))
    assert_one_line_error(run("generate", model, "1"), "architecture")


FULL_DISK = """
import resource, signal, sys
import keras_gpt_cli
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
keras_gpt_cli.main()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file size limit to set")
def test_a_full_disk_is_a_one_line_error_and_nothing_is_half_written(tmp_path, corpus):
    output = tmp_path / "run"
    wide = "model={embedding_dimension: 64, num_layers: 2, num_heads: 2, "
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            FULL_DISK,
            "train",
            f"--corpus={corpus}",
            f"--output={output}",
            "tokenizer=characters",
            wide + "context_length: 16}",
            "steps=1",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    left = {path.name for path in output.rglob("*") if path.is_file()}
    assert not left & {"last.npz", "model.weights.h5", "config.json"}
    assert not [name for name in left if "partial" in name]


def test_the_traceback_is_there_for_who_asks(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_GPT_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["keras-gpt", "info", str(tmp_path)])
    with pytest.raises(FileNotFoundError):
        importlib.import_module("keras_gpt_cli").main()


def test_info_reads_no_weights_of_other_libraries_models(run, foreign, monkeypatch):
    lm, folder = foreign
    monkeypatch.setattr(checkpoints.Checkpoint, "build_model", None)
    status, described, _ = run("info", folder)
    assert status == 0
    for name, value in {
        "model": f"a GPT of {lm.model.count_params():,} parameters",
        "layers": "2, each with 4 attention heads (2 for keys and values)",
        "width": "32, inside the feed-forward networks 96",
        "made with": "rotary positions, RMS normalization, SwiGLU",
        "context": "64 tokens",
        "memory": f"{4 * lm.model.count_params() / 1000:.3g} kB as float32",
        "tokenizer": "BytePairTokenizer of 270 tokens",
        "stops at": "<|endoftext|>",
        "chats": "yes",
        "format": "Hugging Face",
        "family": "llama",
    }.items():
        assert re.search(rf"^ {name} +{re.escape(value)}", described, re.MULTILINE)
    assert "None" not in described


def test_large_figures_are_rounded_into_words(run, smollm2_file):
    _, described, _ = run("info", smollm2_file)
    assert re.search(r"^ model +a GPT of 135 million parameters", described, re.M)
    assert re.search(r"^ memory +538 MB as float32", described, re.M)
    assert re.search(r"^ work +835 million FLOPs for each token", described, re.M)


def test_a_model_of_another_library_works_with_every_command(run, foreign, corpus):
    lm, folder = foreign
    greedy = ("--temperature", 0, "--max-new-tokens", 5)
    _, generated, notes = run("generate", folder, "12 bottles", "--raw", *greedy)
    expected = lm.generate("12 bottles", 5, temperature=0)
    assert generated == f"12 bottles{expected}\n"
    assert notes == ""
    _, answered, _ = run("chat", folder, "--prompt", "12 bottles", *greedy)
    assert answered == lm.generate("12 bottles\n", 5, temperature=0) + "\n"
    # without --raw a chat model is asked by a message
    _, generated, notes = run("generate", folder, "12 bottles", *greedy)
    assert generated == answered
    assert re.fullmatch(r"The prompt is taken as a message .*--raw .*\n", notes)
    prompts = corpus.with_suffix(".jsonl")
    prompts.write_text('{"prompt": "12 bottles"}\n{"prompt": "1 wall"}\n')
    _, generated, _ = run("generate", folder, "--file", prompts, *greedy)
    answers = lm.answer(["12 bottles", "1 wall"], 5, **COLD)
    assert generated == "\n".join([*answers, ""])
    written = corpus.with_name("answers.jsonl")
    job = ("generate", folder, "--file", prompts, *greedy, "--output", written)
    assert run(*job)[1] == ""
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert lines == [
        {"prompt": "12 bottles", "answer": answers[0]},
        {"prompt": "1 wall", "answer": answers[1]},
    ]
    assert_one_line_error(run(*job), "answers.jsonl is there already")
    assert_one_line_error(run(*job[:-2], "--engine", "ray"), "with --output")
    asked = ("generate", folder, "--file", prompts, "--temperature", 0)
    schema = corpus.with_name("schema.json")
    schema.write_text('{"type": "integer", "minimum": 10, "maximum": 40}')
    for form in ("--schema", schema), ("--regex", "[1-4][0-9]"):
        assert re.fullmatch(r"([1-4]\d\n){2}", run(*asked, *form)[1])
    _, answered, _ = run("chat", folder, "--prompt", "1", "--choice", "a", "--choice=b")
    assert answered in ("a\n", "b\n")
    texts = corpus.with_name("texts.jsonl")
    texts.write_text('{"text": "12 bottles"}\n{"text": "1 wall"}\n')
    scored = corpus.with_name("scores.jsonl")
    assert run("score", folder, "--file", texts, "--output", scored)[0] == 0
    scores = [json.loads(line)["score"] for line in scored.read_text().splitlines()]
    for text, found in zip(["12 bottles", "1 wall"], scores, strict=True):
        expected = lm.score(text)
        assert found["num_tokens"] == len(expected)
        assert found["log_probability"] == pytest.approx(expected.sum(), abs=1e-4)
    assert json.loads(run("score", folder, "1 wall")[1]) == pytest.approx(scores[1])
    assert_one_line_error(run("generate", folder), "Give a prompt, or -")
    status, evaluated, _ = run("evaluate", folder, "--file", corpus)
    assert status == 0
    loss = lm.evaluate([TEXT]).loss
    assert float(evaluated.split()[1]) == pytest.approx(loss, abs=1e-4)
    assert_one_line_error(run("evaluate", folder), "--file")


def test_import_brings_a_model_into_our_format(run, foreign, tmp_path):
    lm, folder = foreign
    status, described, errors = run("import", folder, tmp_path / "ours")
    assert status == 0
    assert f"{lm.model.count_params():,}" in described
    assert f"keras-gpt chat {tmp_path / 'ours'}" in errors
    ours = LanguageModel.load(tmp_path / "ours")
    assert ours.generate("12", 5, temperature=0) == lm.generate("12", 5, temperature=0)
    assert ours.source["architecture"] == "llama"
    assert run("info", tmp_path / "ours")[1] == described

    taken = run("import", folder, tmp_path / "ours")
    assert_one_line_error(taken, "ours", "--overwrite")
    half = ("--dtype", "bfloat16", "--overwrite")
    assert run("import", folder, tmp_path / "ours", *half)[0] == 0
    ours = LanguageModel.load(tmp_path / "ours")
    assert ours.model.dtype_policy.name == "bfloat16"


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_import_says_what_few_bits_save_and_cost(run, foreign, tmp_path, weights):
    lm, folder = foreign
    ours = tmp_path / "ours"
    status, described, _ = run("import", folder, ours, "--weights", weights)
    assert status == 0
    described = re.sub(r"\s+", " ", described)
    large = 4 * lm.model.count_params() / 1e6
    assert f"weights {large:.1f} MB as float32, 0." in described
    assert "loss on 4,000 tokens" in described
    before, after, change = map(
        float,
        re.search(
            rf"([\d.]+) as float32, ([\d.]+) as {weights}, ([+-][\d.]+) nats",
            described,
        ).groups(),
    )
    # each is printed to four digits
    assert after - before == pytest.approx(change, abs=2e-4)
    assert abs(change) < 0.05
    loaded = LanguageModel.load(ours)
    assert loaded.model.quantization == weights
    assert re.search(rf"memory +[\d.]+ kB as {weights}", run("info", ours)[1])
    small = (ours / "model.weights.h5").stat().st_size
    assert small < (folder / "model.safetensors").stat().st_size


def test_write_gives_what_other_libraries_read(run, foreign, tmp_path):
    lm, _ = foreign
    lm.save(tmp_path / "ours")
    expected = lm.generate("12 bottles", 5, temperature=0)
    for options in (
        ("written",),
        ("written.gguf", "--dtype", "float32"),
        ("other.gguf", "--format", "gguf", "--dtype", "float32"),
    ):
        path = tmp_path / options[0]
        status, _, errors = run("write", tmp_path / "ours", path, *options[1:])
        assert status == 0
        assert re.search(r"Wrote [\d.]+ MB to ", errors)
        assert path.is_file() == (path.suffix == ".gguf")
        again = LanguageModel.from_pretrained(path)
        assert again.generate("12 bottles", 5, temperature=0) == expected
    assert_one_line_error(run("write", tmp_path / "ours", path), "--overwrite")
    gguf = ("--format", "gguf")
    named = run("write", tmp_path / "ours", tmp_path / "model.bin", *gguf)
    assert_one_line_error(named, "model.bin.gguf")


def test_controls_that_are_not_given_are_the_models_own(run, foreign, tmp_path):
    lm, _ = foreign
    defaults = {"temperature": 0, "top_k": None}
    LanguageModel(lm.model, lm.tokenizer, generation_defaults=defaults).save(
        tmp_path / "ours"
    )
    _, generated, _ = run("generate", tmp_path / "ours", "12", "--max-new-tokens", 5)
    assert generated == "12" + lm.generate("12", 5, temperature=0) + "\n"


def test_sources_without_a_model_are_one_line_errors(run, tmp_path):
    for command in ("generate", "chat", "evaluate --file x", "info"):
        command, *options = command.split()
        missing = run(command, tmp_path / "nowhere", *options)
        assert_one_line_error(missing, "nowhere", "hf://owner/name")
        (tmp_path / "empty").mkdir(exist_ok=True)
        empty = run(command, tmp_path / "empty", *options)
        assert_one_line_error(empty, "empty", "keras-gpt train")
    (tmp_path / "empty" / "config.json").write_text("5")
    assert_one_line_error(run("info", tmp_path / "empty"), "config.json")
    assert_one_line_error(run("chat", "hf://nothing"), "hf://owner/name")


@pytest.mark.skipif(sys.platform == "win32", reason="signals as on Unix")
def test_sigterm_saves_what_is_trained_and_ends_well(corpus, tmp_path):
    fields = [f"model.{field}" for field in TINY]
    sizes = ["tokenizer=characters", "batch_size=2", "steps=1000000"]
    command = ["train", *fields, *sizes, "evaluate_every=20", "sample_tokens=0"]
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", "import keras_gpt_cli; keras_gpt_cli.start()"),
            *(*command, "--corpus", str(corpus), "--output", str(tmp_path / "run")),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "log.csv"
    for _ in range(600):
        # a second line: training is under way
        if log.is_file() and log.read_text().count("\n") > 1:
            break
        time.sleep(0.1)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    last = errors.splitlines()[-1]
    assert re.match(
        r"Stopped at step [\d,]+ of 1,000,000: the run in .* --resume", last
    )
    assert "Traceback" not in errors


def test_ctrl_c_stops_training_and_the_same_command_goes_on(
    run, corpus, tmp_path, signalled
):
    command = ["train", "--corpus", corpus, "--output", tmp_path / "run"]
    fields = [f"model.{field}" for field in TINY]
    fields += ["tokenizer=characters", "batch_size=2", "steps=4", "evaluate_every=2"]
    fields += ["sample_tokens=0", "jit_compile=false"]
    with signalled(signal.SIGINT, 3):
        status, _, errors = run(*command, *fields)
    assert status == 130
    assert "Stopped at step 3 of 4" in errors
    changed = run(*command, *fields, "--resume", "batch_size=3")
    assert_one_line_error(changed, "batch_size from 2 to 3")
    assert run(*command, *fields, "--resume")[0] == 0
    # without any, and longer
    command = ["train", "--resume", "--output", tmp_path / "run"]
    status, output, _ = run(*command, "steps=6")
    assert status == 0
    assert "last_validation_loss" in output


@pytest.mark.parametrize(
    "field", ["optimizer=sgd", "beta_1=2", "early_stopping=-1", "model.num_heads=5"]
)
def test_a_wrong_option_is_found_before_anything_is_written(
    run, corpus, tmp_path, field
):
    output = tmp_path / "run"
    result = run("train", "--corpus", corpus, "--output", output, field)
    assert_one_line_error(result, field.partition("=")[0].removeprefix("model."))
    assert not output.exists()


@pytest.mark.parametrize("command", ["train", "finetune"])
def test_the_schema_of_a_run_is_for_editors(run, command):
    status, output, _ = run(command, "--schema")
    assert status == 0
    assert json.loads(output)["properties"]["steps"]["description"]


def test_export_writes_a_version_and_no_version_twice(
    run, model, tmp_path, monkeypatch
):
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())  # put back afterwards
    served = tmp_path / "served" / "docs"
    command = ["export", model, served, "--next-version", "--max-new-tokens", 8]
    status, _, errors = run(*command, "--weights", "int8", "--batch-size", 1)
    assert status == 0
    assert "weights in int8" in errors
    assert re.search(r"nats per\s+token\s+\([+-]0\.\d+", errors)
    assert "1/README.md" in errors
    assert (served / "1" / "saved_model.pb").is_file()
    status, _, errors = run("export", model, served / "1")
    assert status == 2
    assert "is there already" in errors
    assert "--next-version" in errors
    status, _, errors = run(*command, "--max-prompt-tokens", 17)
    assert status == 2
    assert (
        "`max_prompt_tokens` must be an integer of at least 1 and at most 16" in errors
    )


@pytest.fixture
def summaries(tmp_path):
    """A file with examples of summaries."""
    path = tmp_path / "summaries.jsonl"
    records = [
        {"text": f"{i} bottles of beer on the wall.", "summary": f"{i} bottles"}
        for i in range(12)
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_preview_shows_what_is_learned(run, foreign, summaries):
    _, folder = foreign
    status, output, _ = run("preview", folder, summaries, "--count", 1)
    assert status == 0
    assert "0 bottles of beer on the wall.\n" in output
    assert "[[0 bottles\n<|endoftext|>]]" in output
    assert "of which" in output
    assert "summarize" in output


def test_an_adapter_is_tuned_and_works_with_every_command(
    run, foreign, summaries, tmp_path
):
    _, folder = foreign
    tuned = tmp_path / "tuned"
    settings = ["steps=2", "batch_size=2", "lora_rank=2", "jit_compile=false"]
    command = ["finetune", folder, summaries, tuned, *settings]
    status, output, errors = run(*command)
    assert status == 0
    assert "validation_loss" in output
    assert re.search(r"Training [\d,]+ of [\d,]+\s+parameters", errors)
    assert f"summarize {tuned} '0 bottles of beer" in errors
    assert_one_line_error(run(*command), "already holds a run", "--resume")

    status, output, _ = run("summarize", tuned, "9 bottles", "--max-new-tokens", 4)
    assert status == 0
    status, several, _ = run(
        "summarize", tuned, "--file", summaries, "--max-new-tokens", 4
    )
    assert status == 0
    assert several.count("\n") >= 12
    result = tmp_path / "result.json"
    command = ["evaluate", tuned, "--task", summaries, "--limit", 3]
    status, output, _ = run(*command, "--output", result, "--max-new-tokens", 4)
    assert status == 0
    assert "rougeL" in output
    assert "stem:porter" in output
    assert len(json.loads(result.read_text())["predictions"]) == 3
    status, _, errors = run(
        "translate", tuned, "nine", "--target", "de", "--max-new-tokens", 4
    )
    assert status == 0
    [line] = errors.strip().splitlines()
    assert line.startswith("Note: The model was never tuned to translate")
    described = re.sub(r"\s", "", run("info", tuned)[1])  # a long path is broken
    assert f"adapterLoRAofrank2,2,048ofthem,on{folder}tunedforsummaries" in described
    # beside any copy of its base
    short = ["9 bottles", "--max-new-tokens", 4]
    _, output, _ = run("generate", tuned, *short)
    _, beside, errors = run("generate", folder, *short, "--adapter", tuned)
    assert beside == output
    assert "taken as a text to summarize" in errors
    # as a whole model
    status, _, _ = run("import", tuned, tmp_path / "whole")
    assert status == 0
    assert LanguageModel.load(tmp_path / "whole").tasks["summarize"]
    # without its base
    folder.rename(tmp_path / "elsewhere")
    assert_one_line_error(run("info", tuned), "needs its base", f"model '{folder}'")


def test_bad_examples_are_one_line_errors(run, foreign, tmp_path):
    _, folder = foreign
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a", "summary": "b"}\n{"text": "a"}\n')
    result = run("finetune", folder, path, tmp_path / "run")
    assert_one_line_error(result, "bad.jsonl, line 2", "'summary' is missing")
    assert_one_line_error(run("summarize", folder), "Give a text")
    result = run("translate", folder, "a", "--target", "xx")
    assert_one_line_error(result, "language='xx'")


# -- what a run ends with: "Try it: keras-gpt ..."


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of a random model of letters, with a chat template and without."""
    folder = tmp_path_factory.mktemp("bases")
    tokenizer = CharacterTokenizer(string.printable, special_tokens=["<|endoftext|>"])
    keras.utils.set_random_seed(0)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=256,
        embedding_dimension=32,
        num_layers=1,
        num_heads=2,
        position_embedding="rotary",
    )
    gpt = GPT(config)
    # as large as trained ones are: what stays frozen bounds the logits
    tokens = gpt.embedding.tokens.embeddings
    tokens.assign(20 * keras.ops.convert_to_numpy(tokens))
    template = ChatTemplate(
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    LanguageModel(gpt, tokenizer).save(folder / "plain")
    LanguageModel(gpt, tokenizer, chat_template=template).save(folder / "chat")
    return folder


QUESTION = {"prompt": "Where is\nthe tower?", "completion": "Paris"}
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "content": "Paris"},
]
TRANSLATION = {"source": "Where?", "target": "Paris"}
TRANSLATION |= {"source_language": "en", "target_language": "de"}


@pytest.mark.parametrize(
    ("base", "record", "field"),
    [
        ("chat", QUESTION, "lora_rank=16"),
        ("chat", {"messages": MESSAGES}, "lora_rank=0"),
        ("chat", TRANSLATION, "lora_rank=0"),
        ("plain", {"text": "A long text.\n" * 9, "summary": "Paris"}, "lora_rank=0"),
    ],
    ids=["prompt", "messages", "translation", "summary"],
)
def test_the_line_to_try_gives_what_was_taught(
    run, bases, tmp_path, monkeypatch, base, record, field
):
    tuned = tmp_path / "tuned model"
    assert answer_of(run, bases / base, [record], tuned, field) == "Paris\n"
    if record is QUESTION:  # merged it is a chat model
        monkeypatch.setattr(sys, "stdin", io.StringIO("Where is\\\nthe tower?"))
        assert try_it(run, run("import", tuned, tmp_path / "whole")) == "Paris\n"


def answer_of(run, base, records, output, *fields):
    """What is written where a model is tuned and asked as the command says."""
    path = output.with_suffix(".jsonl")
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records * 4))
    settings = ["steps=20", "batch_size=3", "learning_rate=3e-2", "packing=false"]
    settings += ["evaluate_every=20", "sample_tokens=0", *fields]
    return try_it(run, run("finetune", base, path, output, *settings))


def try_it(run, result):
    """What the line prints that a command ended with."""
    status, _, errors = result
    assert status == 0
    [line] = re.findall(r"^Try it: keras-gpt (.*)\n\Z", errors, re.M | re.S)
    status, answer, errors = run(*shlex.split(line))
    assert status == 0, errors
    return answer


def test_the_line_to_try_gives_the_answer_that_was_preferred(run, bases, tmp_path):
    asked = QUESTION["prompt"]
    both = [QUESTION, {"prompt": asked, "completion": "Rome"}]
    taught, tuned = tmp_path / "taught", tmp_path / "tuned"
    first = answer_of(run, bases / "plain", both, taught, "lora_rank=0")
    assert first in (f"{asked}Paris\n", f"{asked}Rome\n")
    chosen, rejected = ("Rome", "Paris") if "Paris" in first else ("Paris", "Rome")
    pair = {"prompt": asked, "chosen": chosen, "rejected": rejected}
    settings = ("lora_rank=0", "learning_rate=1e-3")
    assert answer_of(run, taught, [pair], tuned, *settings) == f"{asked}{chosen}\n"
