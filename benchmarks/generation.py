"""Speed of generation with random weights: tokens/s, first token, compilation.

Greedy, float32, each backend in a process of its own. The first token is timed from the
call, prompt included; compilation is what the first call takes longer than later ones.
"""

import statistics
import sys
import time

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run_worker,
)


def main() -> int:
    """Measure on each backend, print the table."""
    parser = make_parser(__doc__)
    parser.add_argument("--presets", nargs="+", default=["char_gpu", "gpt2"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="new for each prompt")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    print(
        describe_machine(
            setting=f"{arguments.dtype}, greedy, prompts of {arguments.prompt_tokens} "
            f"tokens, {arguments.tokens} new tokens, median of {arguments.repeats}",
        )
    )
    rows = []
    for preset in arguments.presets:
        for backend in arguments.backends:
            figures = run_worker(
                __file__,
                backend,
                preset=preset,
                batch_sizes=arguments.batch_sizes,
                num_prompt=arguments.prompt_tokens,
                num_new=arguments.tokens,
                repeats=arguments.repeats,
                dtype=arguments.dtype,
            )
            rows += [[preset, backend, *row] for row in figures]
    print_table(
        ["preset", "backend", "batch", "tokens/s", "first token", "compilation"], rows
    )
    return 0


def measure(
    preset: str,
    batch_sizes: list[int],
    num_prompt: int,
    num_new: int,
    repeats: int,
    dtype: str,
) -> list[list[str]]:
    """In a worker: cells of the table for each batch size."""
    import keras_gpt
    from keras_gpt.generation import Generation

    config = keras_gpt.GPTConfig.from_preset(preset)
    model = keras_gpt.GPT(config, dtype=dtype)
    rows = []
    for batch_size in batch_sizes:
        prompts = [
            [(7 * row + i) % config.vocab_size for i in range(num_prompt)]
            for row in range(batch_size)
        ]
        firsts, totals = [], []
        for _ in range(1 + repeats):
            start = time.perf_counter()
            run = Generation(model, prompts, max_new_tokens=num_new, temperature=0)
            run.advance(1)
            firsts.append(time.perf_counter() - start)
            run.advance()
            totals.append(time.perf_counter() - start)
        total = statistics.median(totals[1:])
        rows.append(
            [
                batch_size,
                f"{batch_size * num_new / total:.1f}",
                f"{1000 * statistics.median(firsts[1:]):.1f} ms",
                f"{totals[0] - total:.1f} s",
            ]
        )
    return rows


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
