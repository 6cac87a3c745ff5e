"""Prompt lookup: SmolLM2-135M, greedy, with and without `lookup_tokens`.

The model is asked about passages of the embedded corpus: to copy the sentences that
matter, to write it with a change, and, where nothing can be copied, for a story. Each
backend has a process of its own, in which both ways take turns; the median of the
repeats counts. Time is that after the first token, so without the prompt's; compilation
isn't in it either. Exits with 1 if an id differs in float32; in bfloat16 logits are so
coarse that the best two are often equal, and passes of other lengths round otherwise.
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

PASSAGE_CHARACTERS = 1500
PASSAGES = ('The "assert" statement', 'The "with" statement', "Identifiers (Names)")
TASKS = {
    "extract": "Summarize the following text: copy its three most important sentences, "
    "word for word.\n\n{passage}",
    "edit": 'Write the following text again, but with "Python" for "program".\n\n'
    "{passage}",
    "story": "Write a short story about a lighthouse.",
}


def main() -> int:
    """Measure on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32", help="or bfloat16, or int8")
    parser.add_argument("--lookup-tokens", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="most new ones")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    arguments = parser.parse_args()
    print(
        describe_machine(
            setting=f"SmolLM2-135M, {arguments.dtype}, batch 1, up to "
            f"{arguments.tokens} new tokens, temperature {arguments.temperature}, "
            f"median of {arguments.repeats} turns",
        )
    )
    rows, all_equal = [], True
    for backend in arguments.backends:
        options = {k: v for k, v in vars(arguments).items() if k != "backends"}
        for row in run_worker(__file__, backend, **options):
            plain, ours = row["speeds"]
            all_equal = all_equal and row["equal"]
            rows.append(
                [
                    backend,
                    row["task"],
                    row["tokens"],
                    f"{plain:.1f}",
                    f"{ours:.1f}",
                    f"{ours / plain:.2f}",
                    f"{row['tokens'] / row['passes']:.2f}",
                    "yes" if row["equal"] else "no",
                ]
            )
    with_lookup = f"with {arguments.lookup_tokens}"
    columns = ["backend", "task", "tokens", "tokens/s", with_lookup, "ratio"]
    print_table([*columns, "tokens/pass", "equal"], rows)
    return 0 if all_equal or arguments.dtype != "float32" else 1


def measure(
    dtype: str, lookup_tokens: int, tokens: int, repeats: int, temperature: float
) -> list[dict]:
    """In a worker: figures for each task, over all passages."""
    import keras_gpt
    from keras_gpt.tokenizers import encode_chat

    is_int8 = dtype == "int8"
    lm = keras_gpt.LanguageModel.from_pretrained(
        "smollm2", dtype="float32" if is_int8 else dtype
    )
    if is_int8:
        lm.quantize("int8")
    documents = [
        document[:PASSAGE_CHARACTERS].strip()
        for document in keras_gpt.data.embedded_corpus()
        if document.startswith(PASSAGES)
    ]
    figures = []
    for task, instruction in TASKS.items():
        contents = {instruction.format(passage=passage) for passage in documents}
        seconds = [[], []]
        total = passes = 0
        equal = True
        for content in sorted(contents):
            messages = [{"role": "user", "content": content}]
            ids = encode_chat(lm.chat_template, lm.tokenizer, messages, 2000)
            controls = {"max_new_tokens": tokens, "temperature": temperature}
            controls["stop_ids"] = lm.stop_ids
            times = [[], []]
            for _ in range(1 + repeats):
                found = []
                for way, number in enumerate((0, lookup_tokens)):
                    elapsed, run = _time(lm, ids, lookup_tokens=number, **controls)
                    times[way].append(elapsed)
                    found.append(run)
                equal = equal and found[0].ids == found[1].ids
            for way in (0, 1):  # the first turn compiles
                seconds[way].append(statistics.median(times[way][1:]))
            total += len(found[0].ids[0]) - 1
            passes += found[1].num_lookup_passes
        speeds = [total / sum(seconds[way]) for way in (0, 1)]
        figures.append(
            {
                "task": task,
                "tokens": total,
                "speeds": speeds,
                "passes": passes,
                "equal": equal,
            }
        )
    return figures


def _time(lm, ids, **controls):
    from keras_gpt.generation import Generation

    run = Generation(lm.model, [ids], **controls)
    run.advance(1)
    start = time.perf_counter()
    run.advance()
    return time.perf_counter() - start, run


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
