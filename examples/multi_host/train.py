"""Train one model by several processes, each with the devices of its own host.

Every host runs the same command; Keras learns from three environment variables who is
there. `local.sh` starts two processes on one machine, `slurm.sh` and `jobset.yaml` many
on a cluster. The data is prepared before, into a folder that all hosts see:

    keras-gpt tokenize corpus.txt tokenizer
    keras-gpt prepare corpus.txt data --tokenizer tokenizer

Each process reads its share of every batch; the losses are those of one process. The
weights are whole on each host, so the first one saves the model.
"""

import argparse
import os

os.environ["KERAS_BACKEND"] = "jax"

import keras

if "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ:
    keras.distribution.initialize()  # before anything touches a device

import keras_gpt
from keras_gpt import data, tokenizers, training


def main():
    """Train, and save on the first host."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of keras-gpt prepare")
    parser.add_argument("--tokenizer", required=True, help="its tokenizer's folder")
    parser.add_argument("--output", required=True, help="folder for the model")
    parser.add_argument("--preset", default="quickstart")
    parser.add_argument("--batch-size", type=int, default=32, help="of all hosts")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    arguments = parser.parse_args()

    index = int(os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", 0))
    count = int(os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", 1))
    keras.distribution.set_distribution(training.make_distribution("all"))
    keras.utils.set_random_seed(0)  # the same weights everywhere
    tokenizer = tokenizers.load(arguments.tokenizer)
    config = keras_gpt.GPTConfig.from_preset(
        arguments.preset, vocab_size=tokenizer.vocab_size
    )
    model = keras_gpt.GPT(config)
    steps = arguments.steps
    training.compile_model(model, 1e-3, total_steps=steps, warmup_steps=steps // 10)
    batches = data.load_batches(
        arguments.data,
        "train",
        arguments.batch_size,
        arguments.length,
        process_index=index,
        process_count=count,
    )
    model.fit(
        batches.repeat(),
        steps_per_epoch=steps,
        shuffle=False,
        verbose=2 if index == 0 else 0,
    )
    if index == 0:
        keras_gpt.LanguageModel(model, tokenizer).save(arguments.output)


if __name__ == "__main__":
    main()
