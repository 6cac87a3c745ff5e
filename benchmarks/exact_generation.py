"""Ways to generate that must give equal ids, on each backend, in float32.

Greedy decoding of ragged prompts in one batch with the cache is compared with: no cache
(the whole model over the whole text for every token), each prompt alone, one token
at a time as when streaming, and beam search with one beam; and sampling in a batch
with sampling alone. Exits with 1 if an id differs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from common import (
    answer_worker,
    describe_machine,
    make_parser,
    print_table,
    run_worker,
)
from small_models import MODELS, make_models

COMPARISONS = {
    "uncached": "cached = uncached",
    "alone": "batch = each alone",
    "streamed": "streamed = whole",
    "beam": "beam of 1 = greedy",
    "sampled": "sampled: batch = alone",
}


def main() -> int:
    """Compare on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__)
    parser.add_argument("--train-steps", type=int, default=200, help="of the models")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100, help="new for each prompt")
    arguments = parser.parse_args()
    context_length = MODELS["gpt2_like"]["context_length"]
    if not 0 < arguments.tokens < context_length:
        parser.error(f"--tokens must be from 1 to {context_length - 1}")
    longest = context_length - arguments.tokens
    print(
        describe_machine(
            setting=f"float32; {arguments.prompts} prompts of 1 to {longest} tokens, "
            f"{arguments.tokens} new tokens; models trained {arguments.train_steps} "
            f"steps on {arguments.backends[0]}",
            cells="prompts whose ids are all equal",
        )
    )
    rows, all_equal = [], True
    with tempfile.TemporaryDirectory() as folder:
        make_models(folder, arguments.backends[0], arguments.train_steps)
        for name in MODELS:
            for backend in arguments.backends:
                equal = run_worker(
                    __file__,
                    backend,
                    folder=f"{folder}/{name}",
                    num_prompts=arguments.prompts,
                    longest=longest,
                    num_tokens=arguments.tokens,
                )
                counts = [f"{equal[key]}/{arguments.prompts}" for key in COMPARISONS]
                rows.append([name, backend, *counts])
                all_equal = all_equal and min(equal.values()) == arguments.prompts
    print_table(["model", "backend", *COMPARISONS.values()], rows)
    return 0 if all_equal else 1


def compare(folder: str, num_prompts: int, longest: int, num_tokens: int) -> dict:
    """In a worker: for each comparison, how many prompts have equal ids."""
    import keras_gpt
    from keras_gpt.generation import Generation, beam_search

    model = keras_gpt.LanguageModel.load(folder, dtype="float32").model
    text = keras_gpt.data.TokenDataset(Path(folder, "data"), "val")
    generator = np.random.default_rng(0)
    starts = generator.integers(0, len(text) - longest, num_prompts).tolist()
    lengths = generator.integers(1, longest + 1, num_prompts).tolist()
    prompts = [text[i : i + n].tolist() for i, n in zip(starts, lengths, strict=True)]

    def generate(prompts, **controls):
        return keras_gpt.generate(model, prompts, num_tokens, **controls)

    greedy = generate(prompts, temperature=0)
    found = {
        "uncached": generate_uncached(model, prompts, num_tokens),
        "alone": [generate([prompt], temperature=0)[0] for prompt in prompts],
        "streamed": [],
        "beam": beam_search(model, prompts, num_beams=1, max_new_tokens=num_tokens),
    }
    for prompt in prompts:
        stream = Generation(model, [prompt], max_new_tokens=num_tokens, temperature=0)
        ids = []
        while not stream.finished:
            ids += stream.advance(1)[0]
        found["streamed"].append(ids)
    equal = {key: _count_equal(greedy, rows) for key, rows in found.items()}
    equal["sampled"] = _count_equal(
        generate(prompts, seed=0),  # row i takes the seed i
        [generate([prompt], seed=i)[0] for i, prompt in enumerate(prompts)],
    )
    return equal


def generate_uncached(model, prompts: list[list[int]], num_tokens: int) -> list:
    """Greedy decoding by definition: all of the text through the model each time."""
    lengths = np.array([len(prompt) for prompt in prompts])
    rows = np.arange(len(prompts))
    token_ids = np.zeros((len(prompts), model.config.context_length), "int32")
    for row, prompt in enumerate(prompts):
        token_ids[row, : len(prompt)] = prompt
    new_ids = []
    for step in range(num_tokens):
        logits = model.predict_on_batch(token_ids)  # (batch, sequence, vocabulary)
        new_ids.append(logits[rows, lengths + step - 1].argmax(axis=-1))
        if step + 1 < num_tokens:
            token_ids[rows, lengths + step] = new_ids[-1]
    return np.stack(new_ids, axis=1).tolist()


def _count_equal(expected, found):
    return sum(a == b for a, b in zip(expected, found, strict=True))


if __name__ == "__main__":
    if not answer_worker(compare):
        sys.exit(main())
