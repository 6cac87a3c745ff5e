"""A job of many prompts, killed and gone on with, by this process and by Ray.

Prompts of many lengths are answered with sampling by a small model of random weights,
as `keras-gpt generate --file --output` does it. Each engine's job is killed by SIGKILL
at random numbers of answers and started again, by turns with the other engine in the
last job. Exits with 1 unless each prompt was answered once, and as it is alone.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import describe_machine, environment, make_parser, print_table

COMMAND = "import keras_gpt_cli; keras_gpt_cli.main()"
NEW_TOKENS = 24


def main() -> int:
    """Do the jobs, compare, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.set_defaults(backends=["torch"])
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=3, help="of each job")
    parser.add_argument("--workers", type=int, default=2, help="of Ray")
    arguments = parser.parse_args()
    setting = f"{arguments.prompts} prompts, {NEW_TOKENS} tokens each"
    print(describe_machine(setting=setting), flush=True)
    rows = []
    for backend in arguments.backends:
        os.environ["KERAS_BACKEND"] = backend
        with tempfile.TemporaryDirectory() as folder:
            rows += try_jobs(Path(folder), backend, arguments)
    print_table(["backend, engines", "killed with", "twice", "not as alone"], rows)
    return 0 if all(row[2:] == [0, 0] for row in rows) else 1


def try_jobs(folder: Path, backend: str, arguments) -> list[list]:
    """Do a job with each engine and one with both; a row for each."""
    lm, prompts = make(folder, arguments.prompts)
    alone = [
        lm.answer(prompt, NEW_TOKENS, temperature=0.8, seed=place)
        for place, prompt in enumerate(prompts)
    ]
    rows = []
    for engines in (["process"], ["ray"], ["ray", "process"]):
        output = folder / f"{'-'.join(engines)}.jsonl"
        killed, num_twice = do_job(folder, output, engines, backend, arguments)
        lines = map(json.loads, output.read_text("utf-8").splitlines())
        pairs = [(line["prompt"], line["answer"]) for line in lines]
        expected = list(zip(prompts, alone, strict=True))
        num_other = sum(a != b for a, b in zip(pairs, expected, strict=True))
        shown = ", ".join(map(str, killed))
        rows.append(
            [f"{backend}, {' and '.join(engines)}", shown, num_twice, num_other]
        )
    return rows


def make(folder: Path, num_prompts: int):
    """Save a model and prompts; give both."""
    import keras

    import keras_gpt

    keras.utils.set_random_seed(0)
    chooser = random.Random(0)
    prompts = [
        "".join(chooser.choices("abcdefg é\n", k=chooser.randint(1, 60)))
        for _ in range(num_prompts)
    ]
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for prompt in prompts:
            print(json.dumps({"prompt": prompt}), file=file)
    tokenizer = keras_gpt.CharacterTokenizer.train(prompts, progress=False)
    config = keras_gpt.GPTConfig(
        vocab_size=tokenizer.vocab_size,
        context_length=128,
        embedding_dimension=64,
        num_layers=2,
        num_heads=4,
    )
    lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    lm.save(folder / "model")
    return lm, prompts


def do_job(folder: Path, output: Path, engines: list, backend: str, arguments):
    """Do a job that is killed; with how many answers, and how many came twice."""
    part = output.with_name(f".{output.name}.part")
    chooser = random.Random(len(engines))
    killed, num_twice = [], 0
    for number in range(arguments.kills + 1):
        engine = engines[number % len(engines)]
        command = ["generate", folder / "model", "--file", folder / "prompts.jsonl"]
        command += ["--output", output, "--max-new-tokens", NEW_TOKENS]
        command += ["--temperature", 0.8, "--engine", engine]
        command += ["--workers", arguments.workers]
        job = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, command)],
            env=environment(backend),
            stderr=subprocess.PIPE,
            text=True,
        )
        if number == arguments.kills:
            _, errors = job.communicate()
            if job.returncode:
                sys.exit(f"{errors}It ended with {job.returncode}.")
            break
        share = arguments.prompts / (arguments.kills + 1)
        goal = (killed or [0])[-1] + chooser.uniform(0.3, 1) * share
        while len(places := read_places(part)) < goal and job.poll() is None:
            time.sleep(0.05)
        os.kill(job.pid, signal.SIGKILL)
        job.communicate()
        places = read_places(part)
        num_twice += len(places) - len(set(places))
        killed.append(len(places))
    return killed, num_twice


def read_places(part: Path) -> list[int]:
    """The places of prompts whose answers are noted."""
    if not part.is_file():
        return []
    whole, _, _ = part.read_text("utf-8").rpartition("\n")
    return [json.loads(line)[0] for line in whole.splitlines()[1:]]


if __name__ == "__main__":
    sys.exit(main())
