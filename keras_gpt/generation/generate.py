"""Continuing prompts: greedily, by samples, or by beams."""

from collections.abc import Sequence

from keras_gpt.generation.beam import BeamSearch
from keras_gpt.generation.outside import is_outside
from keras_gpt.generation.rows import check_count
from keras_gpt.generation.run import Generation, Run


def generate(
    model,
    ids: Sequence[Sequence[int]],
    max_new_tokens: int | Sequence[int] = 64,
    temperature: float | Sequence[float] = 0.8,
    top_k: int | Sequence[int] | None = 40,
    top_p: float | Sequence[float] | None = None,
    min_p: float | Sequence[float] | None = None,
    repetition_penalty: float | Sequence[float] = 1.0,
    num_beams: int = 1,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    seed: int | Sequence[int] = 0,
    num_return_sequences: int = 1,
    lookup_tokens: int = 0,
    length_penalty: float = 1.0,
    adapter: str | Sequence[str | None] | None = None,
    **others,
) -> list[list[int]]:
    """Continue each prompt.

    A row's result depends on its own prompt, controls and seed alone, not on the
    rows beside it. Text may outgrow the model's context: then the older half of it
    is forgotten.

    Args:
        model: A `GPT`.
        ids: Prompts, each a non-empty list of token ids, of any lengths up to the
            model's `context_length`.
        max_new_tokens: Most tokens to add. This and the next five may be one value
            or one for each prompt.
        temperature: Divides the logits before sampling; 0 is greedy.
        top_k: Sample from the `top_k` likeliest tokens only. `None` for all.
        top_p: Sample from the likeliest tokens that have this probability together.
        min_p: Sample from tokens at least this fraction as likely as the likeliest.
        repetition_penalty: Above 1, tokens of the prompt and of the text so far
            become less likely.
        num_beams: Above 1, beam search (`BeamSearch`), which is deterministic: neither
            temperature, `top_k`, `top_p`, `min_p` nor `seed` matter.
        stop_ids: Ids that end a row, which are not part of the result; or a list of
            these for each prompt.
        seed: Of the samples; row `i` takes `seed + i`. A list gives each row's own.
        num_return_sequences: Continuations for each prompt, one after the other in
            the result; of beams the best ones.
        lookup_tokens: Above 0, each pass of the model reads up to so many tokens more,
            guessed from where a row's last tokens occurred before, and keeps those
            that it would have chosen. The result is the same, in fewer passes where
            the text copies from the prompt or repeats itself. Another value compiles
            anew.
        length_penalty: Of beam search: above 0 it favours longer text.
        adapter: The name of one of the model's adapters, which
            `keras_gpt.training.load_adapters` gave it, or `None` for the model without
            any; or one for each prompt.
        **others: There are none: an unknown name is refused with the nearest.

    Returns:
        The new ids of each row, without the prompt.

    Raises:
        TypeError: A control is unknown.
        ValueError: A prompt is empty, too long or has ids out of range, a control
            is out of its range, or two don't go together.

    Example:

    >>> import keras_gpt
    >>> config = keras_gpt.GPTConfig(vocab_size=65, context_length=16,
    ...                              embedding_dimension=32, num_layers=1, num_heads=2)
    >>> model = keras_gpt.GPT(config)
    >>> new = keras_gpt.generate(model, [[1, 2, 3], [4]], max_new_tokens=5)
    >>> [len(row) for row in new]
    [5, 5]
    """
    run = start(
        model,
        ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        stop_ids=stop_ids,
        seed=seed,
        num_return_sequences=num_return_sequences,
        lookup_tokens=lookup_tokens,
        length_penalty=length_penalty,
        adapter=adapter,
        **others,
    )
    run.advance()
    return run.ids


def start(
    model,
    prompts: Sequence[Sequence[int]],
    *,
    num_beams: int = 1,
    lookup_tokens: int = 0,
    length_penalty: float = 1.0,
    **controls,
) -> Run:
    """Begin to continue prompts; see `generate` for the arguments.

    Returns:
        A `Generation`, or a `BeamSearch` where there are several beams.
    """
    check_count("num_beams", num_beams)
    check_count("lookup_tokens", lookup_tokens, least=0)
    if is_outside(model) and (num_beams > 1 or lookup_tokens):
        raise ValueError(
            "A model that another engine runs has neither beams nor lookup. Received: "
            f"num_beams={num_beams}, lookup_tokens={lookup_tokens}. Leave them out."
        )
    if controls.get("form") is not None and (num_beams > 1 or lookup_tokens):
        raise ValueError(
            "Answers of a given form have neither beams nor lookup. Received: "
            f"num_beams={num_beams}, lookup_tokens={lookup_tokens}. Leave them out."
        )
    if num_beams == 1:
        if length_penalty != 1:
            raise ValueError(
                "`length_penalty` is of beam search. Received: "
                f"length_penalty={length_penalty}, num_beams=1. Give num_beams=4."
            )
        return Generation(model, prompts, lookup_tokens=lookup_tokens, **controls)
    if lookup_tokens:
        raise ValueError(
            "Beam search looks nothing up. Received: "
            f"lookup_tokens={lookup_tokens}, num_beams={num_beams}. Leave one out."
        )
    controls["length_penalty"] = length_penalty
    return BeamSearch(model, prompts, num_beams=num_beams, **controls)
