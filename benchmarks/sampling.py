"""Sampling beside greedy decoding: SmolLM2-135M in float32, tokens/s of both.

Each backend has a process of its own, in which greedy decoding and a way to sample take
turns; tokens/s are medians, and so is the ratio, of those of two neighbours. Time is
that after the first token, so without the prompt's; compilation isn't in it either.
Exits with 1 if a ratio is below `--limit`.
"""

import statistics
import sys
import time

from common import (
    answer_worker,
    describe_machine,
    make_parser,
    make_prompts,
    print_table,
    run_worker,
)

PROMPT_TOKENS = 16
OFF = {"temperature": 0.8, "top_k": None}
SETTINGS = {
    "top_k=40": {**OFF, "top_k": 40},
    "top_p=0.95": {**OFF, "top_p": 0.95},
    "min_p=0.1": {**OFF, "min_p": 0.1},
    "top_k=40, top_p=0.95": {**OFF, "top_k": 40, "top_p": 0.95},
    "of all": OFF,
}


def main() -> int:
    """Measure on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--tokens", type=int, default=64, help="new for each prompt")
    parser.add_argument("--repeats", type=int, default=3, help="turns that are timed")
    parser.add_argument("--limit", type=float, default=0.95, help="lowest ratio")
    arguments = parser.parse_args()
    print(
        describe_machine(
            setting=f"SmolLM2-135M, float32, temperature 0.8, prompts of "
            f"{PROMPT_TOKENS} tokens, {arguments.tokens} new tokens, median of "
            f"{arguments.repeats} turns",
        )
    )
    rows, lowest = [], float("inf")
    for backend in arguments.backends:
        for batch_size in arguments.batch_sizes:
            figures = run_worker(
                __file__,
                backend,
                batch_size=batch_size,
                settings=arguments.settings,
                tokens=arguments.tokens,
                repeats=arguments.repeats,
            )
            for setting, (greedy, sampled, ratio) in figures.items():
                lowest = min(lowest, ratio)
                speeds = f"{greedy:.1f}", f"{sampled:.1f}"
                rows.append([backend, batch_size, setting, *speeds, f"{ratio:.3f}"])
    print_table(["backend", "batch", "sampled", "greedy", "tokens/s", "ratio"], rows)
    return 0 if lowest >= arguments.limit else 1


def measure(
    batch_size: int, settings: list[str], tokens: int, repeats: int
) -> dict[str, list[float]]:
    """In a worker: for each setting tokens/s greedy and sampled, and their ratio."""
    import keras_gpt

    lm = keras_gpt.LanguageModel.from_pretrained("smollm2", dtype="float32")
    for _ in range(-(-80 // tokens)):  # compiles; PyTorch does at the 64th token
        _time(lm, batch_size, tokens, temperature=0)
    figures = {}
    for setting in settings:
        pairs = []
        for _ in range(repeats):
            greedy = _time(lm, batch_size, tokens, temperature=0)
            sampled = _time(lm, batch_size, tokens, **SETTINGS[setting])
            pairs.append((greedy, sampled))
        figures[setting] = [
            batch_size * (tokens - 1) / statistics.median(times)
            for times in zip(*pairs, strict=True)
        ]
        figures[setting].append(statistics.median(a / b for a, b in pairs))
    return figures


def _time(lm, batch_size, tokens, **controls):
    """Seconds for all tokens after the first."""
    from keras_gpt.generation import Generation

    prompts = make_prompts(batch_size, PROMPT_TOKENS)
    run = Generation(lm.model, prompts, max_new_tokens=tokens, **controls)
    run.advance(1)
    start = time.perf_counter()
    run.advance()
    return time.perf_counter() - start


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
