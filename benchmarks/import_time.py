"""What `import keras_gpt` adds to `import keras`, and whether it loads TensorFlow.

Fresh processes, alternating, the medians. Exits with 1 if it adds more than the limit,
or loads TensorFlow on JAX or PyTorch.
"""

import statistics
import sys

from common import describe_machine, environment, make_parser, print_table, run

CODE = """
import sys, time
start = time.perf_counter()
import {package}
print(time.perf_counter() - start, "tensorflow" in sys.modules)
"""


def main() -> int:
    """Import, print the table, return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--limit", type=float, default=0.3, help="seconds")
    arguments = parser.parse_args()
    print(describe_machine(setting=f"median of {arguments.repeats} fresh processes"))
    rows, holds = [], True
    for backend in arguments.backends:
        seconds = {"keras": [], "keras_gpt": []}
        for repeat in range(-1, arguments.repeats):
            for package, times in seconds.items():
                command = [sys.executable, "-c", CODE.format(package=package)]
                output = run(command, env=environment(backend)).split()
                if repeat >= 0:  # the first reads the files from the disk
                    times.append(float(output[0]))
                loads_tensorflow = output[1] == "True"  # of keras_gpt, the last
        keras, ours = (statistics.median(times) for times in seconds.values())
        rows.append(
            [
                backend,
                f"{keras:.2f} s",
                f"{ours:.2f} s",
                f"{ours - keras:+.2f} s",
                "yes" if loads_tensorflow else "no",
            ]
        )
        holds = holds and ours - keras <= arguments.limit
        holds = holds and (backend == "tensorflow" or not loads_tensorflow)
    print_table(
        ["backend", "import keras", "import keras_gpt", "adds", "loads TensorFlow"],
        rows,
    )
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
