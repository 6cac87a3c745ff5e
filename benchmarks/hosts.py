"""Training by two processes with JAX, over loopback: as one, killed, on other devices.

Every row is a run of `keras-gpt train` that ends at the same step, compared with the
first, of one process and one device: the largest difference of a loss in its log. Where
one of two processes is killed, the seconds are those until the other has ended with an
error; both then go on with `--resume`. Exits with 1 if a loss differs by over 1e-5,
if a process doesn't end within 60 s of the other, or ends without an error.
"""

import argparse
import csv
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import describe_machine, environment, print_table

RUN = """
steps: {steps}
evaluate_every: {every}
save_every: 5
batch_size: 16
learning_rate: 0.003
schedule: constant
warmup_steps: 4
corpus: corpus.txt
tokenizer: characters
sample_tokens: 8
early_stopping: 100
model: {{context_length: 32, embedding_dimension: 64, num_layers: 2, num_heads: 4}}
"""
COMMAND = "import sys, keras_gpt_cli; sys.exit(keras_gpt_cli.main())"


class Processes:
    """Runs of the command in one process or several, that use the files of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, output, devices, processes=1, local=1, more=()):
        """Start the command in each process, which sees so many local devices."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        started = []
        for index in range(processes):
            variables = environment("jax")
            variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={local}"
            if processes > 1:
                variables |= {
                    "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
                    "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
                    "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
                }
            command = [sys.executable, "-c", COMMAND, "train", "--output", output]
            command += ["--devices", devices, *more]
            log = (self.folder / f"{output}.{index}.txt").open("a")
            started.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=variables, stdout=log, stderr=log
                )
            )
        return started

    def run(self, output, *args, **kwargs):
        """Run the command to its end, and give its losses."""
        for index, process in enumerate(self.start(output, *args, **kwargs)):
            if process.wait():
                print((self.folder / f"{output}.{index}.txt").read_text())
                raise SystemExit(f"{output}: process {index} failed.")
        return self.read(output)

    def read(self, output):
        """All losses in the log of a run."""
        with (self.folder / output / "log.csv").open(newline="") as file:
            return [float(row[k]) for row in csv.DictReader(file) for k in LOSSES]

    def is_at(self, output, step):
        """Whether a run has come so far."""
        path = self.folder / output / "steps.csv"
        lines = path.read_text().splitlines() if path.is_file() else []
        return len(lines) > 1 and int(lines[-1].split(",")[0]) >= step


LOSSES = ("loss", "val_loss")
KILLS = ((signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGTERM, 1))


def main() -> int:
    """Do all runs, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40, help="a multiple of 20")
    parser.add_argument("--only", nargs="*", help="names of rows")
    arguments = parser.parse_args()
    steps = arguments.steps
    print(describe_machine(setting=f"{steps} steps of 16 x 32 tokens"))
    rows, is_right = [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        text = "".join(f"{n} bottles of beer, {n} bottles.\n" for n in range(400))
        (folder / "corpus.txt").write_text(text)
        (folder / "run.yaml").write_text(RUN.format(steps=steps, every=steps // 4))
        runs = Processes(folder)
        new = ("--config", "run.yaml")
        first = runs.run("one", "1", more=new)

        def note(name, losses, seconds=None):
            nonlocal is_right
            gap = max(abs(a - b) for a, b in zip(losses, first, strict=True))
            is_right &= gap <= 1e-5 and (seconds or 0) <= 60
            shown = "" if seconds is None else f"{seconds:.1f}"
            rows.append([name, f"{gap:.1e}", shown])
            print("...", rows[-1], file=sys.stderr)

        for local, devices in ((1, "all"), (1, "fsdp:2"), (2, "model:4")):
            title = f"2 processes of {local}: {devices}"
            if not arguments.only or title in arguments.only:
                note(title, runs.run(title, devices, 2, local, new))

        for devices in ("all", "fsdp:2"):
            for number, victim in KILLS:
                title = f"{devices}: {number.name} to process {victim} of 2"
                if arguments.only and title not in arguments.only:
                    continue
                started = runs.start(title, devices, 2, 1, new)
                while not runs.is_at(title, steps * 3 // 5):
                    time.sleep(0.05)
                start = time.perf_counter()
                started[victim].send_signal(number)
                other = started[1 - victim].wait()
                seconds = time.perf_counter() - start
                started[victim].wait()
                is_right &= (other == 0) == (number == signal.SIGTERM)
                note(title, runs.run(title, devices, 2, 1, ("--resume",)), seconds)

        title = "2 processes of 4: fsdp:8, then 1 device, then fsdp:4"
        if not arguments.only or title in arguments.only:
            begun = (*new, f"steps={steps // 2}")
            runs.run(title, "fsdp:8", 2, 4, begun)
            runs.run(title, "1", 1, 1, ("--resume", f"steps={steps * 3 // 4}"))
            again = ("--resume", f"steps={steps}")
            note(title, runs.run(title, "fsdp:4", 1, 4, again))
    print_table(["run", "largest difference of a loss", "s until the other ends"], rows)
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
