"""The LM Evaluation Harness (lm-eval), an optional dependency."""

from keras_gpt.installed import require


def lm_eval_model(lm, batch_size: int = 8, *, prefix_token_id: int | None = None):
    """Make a model that lm-eval evaluates.

    Args:
        lm: A `LanguageModel`.
        batch_size: Texts at once.
        prefix_token_id: What stands before a text that has nothing before it.
            Defaults to the token that begins texts, or else to the one that ends them.

    Returns:
        An `lm_eval.api.model.LM`, the `model` of `lm_eval.simple_evaluate`. Its
        results are those of lm-eval's own models with the same weights.

    Raises:
        ImportError: lm-eval isn't installed.
        ValueError: An option is out of its range.

    References:
        - [lm-eval](https://github.com/EleutherAI/lm-evaluation-harness)

    Example:

    >>> import keras_gpt
    >>> from keras_gpt.evaluation import lm_eval_model
    >>> tokenizer = keras_gpt.CharacterTokenizer.train(["hello world"])
    >>> config = keras_gpt.GPTConfig(vocab_size=8, context_length=16, num_heads=1,
    ...                              embedding_dimension=8, num_layers=1)
    >>> lm = keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)
    >>> model = lm_eval_model(lm, batch_size=4)  # for simple_evaluate(model, tasks=...)
    >>> model.max_length
    16
    """
    require("lm-eval", "Evaluation by lm-eval", "lm_eval")
    from keras_gpt.evaluation.lm_eval_adapter import LMEvalModel

    return LMEvalModel(lm, batch_size, prefix_token_id=prefix_token_id)
