"""Loading models, as all commands do it."""

from pathlib import Path

from keras_gpt_cli.options import QUANTIZED, Weights


def is_ours(model):
    """Whether a folder is a run's, a model's of `save`, or one without any model."""
    from keras_gpt.language_model import CONFIG_FILE, is_saved

    folder = Path(model)
    is_empty = folder.is_dir() and not (folder / CONFIG_FILE).is_file()
    return is_empty or is_saved(folder)


def load(model, dtype=None, weights=None, revision=None, *, merge=False, adapter=None):
    """The model, of any source; a folder without one gets the error about runs.

    With `merge` an adapter becomes a part of the weights, as what is written needs it.
    `adapter` is the folder of one that is put into it.
    """
    from keras_gpt import LanguageModel, training

    if weights in (Weights.FLOAT32, Weights.BFLOAT16):
        if dtype not in (None, str(weights)):
            raise ValueError(
                "`weights` must be the `dtype`, int8 or int4. Received: "
                f"weights={weights}, dtype={dtype}. Give one of them."
            )
        dtype = str(weights)
    if is_ours(model):
        lm = LanguageModel.load(model, dtype=dtype)
    else:
        lm = LanguageModel.from_pretrained(model, dtype=dtype, revision=revision)
    if merge and training.has_lora(lm.model):
        lm.merge_adapter()
    if weights in QUANTIZED:
        lm.quantize(str(weights))
    if adapter is not None:
        lm.load_adapter(adapter)
    return lm
