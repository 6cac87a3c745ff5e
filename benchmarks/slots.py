"""Continuous batching: SmolLM2-135M, greedy, in `Slots` beside `generate`.

First 16 prompts at once, in 16 slots, beside `generate` with a batch of 16 and beside
one prompt alone. Then the second turn of a chat with a history of about 1,000 tokens:
the time until its first token with what was kept of the first turn, and without. Each
backend has a process of its own, in which all ways take turns; the median of the
repeats counts, and compilation isn't in it. Exits with 1 if an id differs.
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

NUM_PROMPTS = 16


def main() -> int:
    """Measure on each backend, print the table, return the exit status."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=64, help="new ones of each")
    parser.add_argument("--history", type=int, default=1000, help="tokens of a chat")
    parser.add_argument("--parts", nargs="+", default=["together", "turn"])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print(
        describe_machine(
            setting=f"SmolLM2-135M, float32, greedy, {NUM_PROMPTS} prompts of 24 "
            f"tokens and {arguments.tokens} new ones each; a chat of "
            f"{arguments.history} tokens; median of {arguments.repeats} turns",
        )
    )
    together, turns, all_equal = [], [], True
    for backend in arguments.backends:
        options = {k: v for k, v in vars(arguments).items() if k != "backends"}
        found = run_worker(__file__, backend, **options)
        all_equal = all_equal and found["equal"]
        if "together" in found:
            batch, slots, one = found["together"]
            row = [backend, *(f"{speed:.0f}" for speed in (batch, slots, one))]
            together.append([*row, f"{slots / batch:.2f}", f"{slots / one:.1f}"])
        if "turn" in found:
            kept, read, reused = found["turn"]
            row = [backend, reused, f"{1000 * kept:.0f} ms", f"{1000 * read:.0f} ms"]
            turns.append([*row, f"{read / kept:.1f}"])
    if together:
        columns = ["tokens/s", "generate(16)", "16 slots", "1 alone"]
        print_table([*columns, "of generate", "of 1"], together)
    if turns:
        columns = ["second turn", "tokens kept", "first token", "all read again"]
        print_table([*columns, "ratio"], turns)
    return 0 if all_equal else 1


def measure(tokens: int, history: int, parts: list[str], repeats: int) -> dict:
    """In a worker: speeds together, and seconds to the first token of a turn."""
    import keras_gpt

    lm = keras_gpt.LanguageModel.from_pretrained("smollm2")
    result = {"equal": True}
    if "together" in parts:
        speeds, equal = measure_together(lm, tokens, repeats)
        result |= {"together": speeds, "equal": equal}
    if "turn" in parts:
        turn, equal = measure_turn(lm, history, repeats)
        result |= {"turn": turn, "equal": result["equal"] and equal}
    return result


def measure_together(lm, tokens, repeats):
    """Tokens/s of a batch, of slots and of one prompt; whether all ids are the same."""
    import keras_gpt
    from keras_gpt.generation import Slots

    text = "\n".join(keras_gpt.data.embedded_corpus())[:40_000]
    ids = lm.tokenizer.encode(text)
    prompts = [ids[100 * i : 100 * i + 24] for i in range(NUM_PROMPTS)]
    controls = {"max_new_tokens": tokens, "temperature": 0}

    def in_batch(prompts):
        return keras_gpt.generate(lm.model, prompts, **controls)

    def in_slots(prompts):
        slots = Slots(lm.model, NUM_PROMPTS, kept_tokens=0)
        rows = [slots.add(prompt, **controls) for prompt in prompts]
        while slots.num_free < NUM_PROMPTS:
            slots.advance()
        return [row.ids for row in rows]

    ways = (in_batch, prompts), (in_slots, prompts), (in_slots, prompts[:1])
    times = [[], [], []]
    for _ in range(1 + repeats):
        found = []
        for way, (run, given) in enumerate(ways):
            start = time.perf_counter()
            found.append(run(given))
            times[way].append(time.perf_counter() - start)
    seconds = [statistics.median(each[1:]) for each in times]  # the first compiles
    counts = [tokens * len(given) for _, given in ways]
    speeds = [n / s for n, s in zip(counts, seconds, strict=True)]
    return speeds, found[0] == found[1] and found[2] == found[0][:1]


def measure_turn(lm, history, repeats):
    """Seconds to the first token with and without what was kept, and how much was."""
    import keras_gpt
    from keras_gpt.generation import Slots
    from keras_gpt.tokenizers import encode_chat

    corpus = "\n".join(keras_gpt.data.embedded_corpus())
    passage = lm.tokenizer.decode(lm.tokenizer.encode(corpus[:40_000])[: history - 60])

    def answer(slots, messages, tokens):
        ids = encode_chat(lm.chat_template, lm.tokenizer, messages, 4000)
        controls = {"max_new_tokens": tokens, "temperature": 0}
        start = time.perf_counter()
        row = slots.add(ids, stop_ids=lm.stop_ids, **controls)
        while not row.ids:
            slots.advance(1)
        seconds = time.perf_counter() - start
        while row.finish_reason is None:
            slots.advance()
        return row, seconds

    times, found = ([], []), []
    for _ in range(1 + repeats):
        for way, kept_tokens in enumerate((8192, 0)):
            slots = Slots(lm.model, 1, kept_tokens=kept_tokens)
            messages = [{"role": "user", "content": f"Read this.\n\n{passage}"}]
            row, _ = answer(slots, messages, 20)
            text = lm.tokenizer.decode(row.ids)
            messages.append({"role": "assistant", "content": text})
            messages.append({"role": "user", "content": "What is it about?"})
            row, seconds = answer(slots, messages, 20)
            times[way].append(seconds)
            found.append(row)
    kept, read = (statistics.median(each[1:]) for each in times)
    equal = all(row.ids == found[0].ids for row in found)
    return [kept, read, f"{found[0].num_reused} of {len(found[0].prompt)}"], equal


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
