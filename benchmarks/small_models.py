"""Two small models, trained for a while on the embedded corpus, saved.

The benchmarks that compare numbers start from them: after some training the likeliest
token is neither a matter of rounding nor always the same.
"""

from pathlib import Path

from common import answer_worker, run_worker

_SIZE = {
    "vocab_size": 512,
    "context_length": 128,
    "embedding_dimension": 128,
    "num_layers": 4,
    "num_heads": 8,
    "dropout_rate": 0.1,
}
MODELS = {
    "gpt2_like": {
        **_SIZE,
        "position_embedding": "learned",
        "normalization": "layer_norm",
        "activation": "gelu_tanh",
        "use_bias": True,
        "tie_embeddings": True,
    },
    "llama_like": {
        **_SIZE,
        "num_kv_heads": 2,
        "position_embedding": "rotary",
        "normalization": "rms_norm",
        "activation": "swiglu",
        "use_bias": False,
        "tie_embeddings": False,
    },
}


def make_models(folder: str | Path, backend: str, steps: int) -> None:
    """Train and save the models on one backend, each in a folder with its name."""
    run_worker(__file__, backend, folder=str(folder), steps=steps)


def _train(folder, steps):
    from keras_gpt import runs

    for name, fields in MODELS.items():
        config = runs.RunConfig(
            output=f"{folder}/{name}",
            vocab_size=fields["vocab_size"],
            model=fields,
            steps=steps,
            batch_size=8,
            evaluate_every=steps,
            evaluation_batches=4,
            sample_tokens=0,
        )
        runs.train(config)


if __name__ == "__main__":
    answer_worker(_train)
