"""`LMEvalModel`: a language model as lm-eval wants it; imported only where that is."""

import itertools
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import Collator, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from keras_gpt.generation.scoring import score_against_greedy

_MOST_NEW_TOKENS = 256  # as of lm-eval's model for Transformers


class LMEvalModel(TemplateLM):
    """What `lm_eval_model` makes.

    Encodes, cuts and scores as lm-eval's `HFLM` does, so that results compare: special
    tokens spelled in a text count as such, and what is too long loses its beginning.

    Args:
        lm: A `LanguageModel`.
        batch_size: Texts at once.
        prefix_token_id: What stands before a text that has nothing before it.
    """

    def __init__(self, lm, batch_size: int = 8, prefix_token_id: int | None = None):
        super().__init__()
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(
                "`batch_size` must be a positive integer. Received: "
                f"batch_size={batch_size!r}."
            )
        vocab_size = lm.model.config.vocab_size
        if prefix_token_id is not None and prefix_token_id not in range(vocab_size):
            raise ValueError(
                f"`prefix_token_id` must be from 0 to {vocab_size - 1}. Received: "
                f"prefix_token_id={prefix_token_id!r}."
            )
        self.lm = lm
        self.batch_size = batch_size
        self.max_length = lm.model.config.context_length
        # a short context is shared by prompt and answer
        self.max_gen_toks = min(_MOST_NEW_TOKENS, self.max_length // 2)
        self._given_prefix_token_id = prefix_token_id

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text."""
        return self.lm.tokenizer.end_of_text_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text that has nothing before it."""
        lm = self.lm
        named = {} if lm.chat_template is None else lm.chat_template.special_tokens
        choices = [
            self._given_prefix_token_id,
            *lm.tokenizer.start_ids,
            lm.tokenizer.special_tokens.get(named.get("bos_token")),
            self.eot_token_id,
        ]
        found = [token_id for token_id in choices if token_id is not None]
        if not found:
            raise ValueError(
                "The tokenizer has no token for the beginning or the end of a text, "
                "and the task has texts with nothing before them. Give "
                "lm_eval_model a `prefix_token_id`, such as that of a line break."
            )
        return found[0]

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """Token ids of a text, with those that the model wants before every text."""
        start = self.lm.tokenizer.start_ids
        ids = self.lm.tokenizer.encode(string, allow_special=True)
        # a chat template may have written them already
        if add_special_tokens is False or ids[: len(start)] == start:
            return ids
        return start + ids

    def _loglikelihood_tokens(self, requests, disable_tqdm=False, **kwargs):
        """Log-probability of each continuation, and whether it is greedy."""
        for texts, _, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    "A continuation must have from 1 token to the model's context, "
                    f"{self.max_length}. Received: {len(continuation)} tokens of "
                    f"{texts!r:.80}. Leave the task out."
                )
        # the longest first: what doesn't fit the memory fails at once
        collator = Collator(requests, sort_fn=lambda r: -len(r[1]) - len(r[2]))
        results = []
        with tqdm(
            total=len(requests), desc="Scoring", disable=disable_tqdm
        ) as progress:
            for batch in collator.get_batched(n=self.batch_size):
                rows = [(r[1] + r[2])[-self.max_length - 1 :] for r in batch]
                scores = score_against_greedy(
                    self.lm.model,
                    rows,
                    batch_size=self.batch_size,
                    adapter=self.lm.adapter,
                )
                for (texts, _, continuation), (log_probs, is_greedy) in zip(
                    batch, scores, strict=True
                ):
                    n = len(continuation)
                    result = (
                        float(log_probs[-n:].sum(dtype="float64")),
                        bool(is_greedy[-n:].all()),
                    )
                    results.append(result)
                    if texts is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, result)
                progress.update(len(batch))
        return collator.get_original(results)

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, long ones in windows."""
        windows = [
            [
                (None, *make_disjoint_window(pair))
                for pair in get_rolling_token_windows(
                    self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        results = iter(
            self._loglikelihood_tokens(
                list(itertools.chain.from_iterable(windows)), disable_tqdm
            )
        )
        return [
            sum((log_prob for log_prob, _ in itertools.islice(results, len(own))), 0.0)
            for own in windows
        ]

    def generate_until(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[str]:
        """Continue texts up to a stop string."""
        collator = Collator(
            [
                (number, self.tok_encode(request.args[0]), *request.args)
                for number, request in enumerate(requests)
            ],
            sort_fn=lambda r: -len(r[1]),
            group_by="gen_kwargs",  # those of a batch are the same
            group_fn=lambda r: r[3],
        )
        results = []
        with tqdm(
            total=len(requests), desc="Generating", disable=disable_tqdm
        ) as progress:
            for batch in collator.get_batched(n=self.batch_size):
                numbers, prompts, contexts, settings = zip(*batch, strict=True)
                texts = self._generate(numbers, prompts, settings[0])
                for context, text in zip(contexts, texts, strict=True):
                    self.cache_hook.add_partial(
                        "generate_until", (context, settings[0]), text
                    )
                results += texts
                progress.update(len(batch))
        return collator.get_original(results)

    def _generate(self, numbers, prompts, settings):
        """Continue a batch of token ids; the requests' numbers are their seeds."""
        lm = self.lm
        settings = normalize_gen_kwargs(settings, self.max_gen_toks)
        max_new_tokens = settings.pop("max_gen_toks")
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ValueError(
                "`max_gen_toks` must be less than the model's context. Received: "
                f"max_gen_toks={max_new_tokens}, context_length={self.max_length}. "
                f"Try simple_evaluate(..., gen_kwargs={{'max_gen_toks': "
                f"{self.max_gen_toks}}})."
            )
        is_greedy = not settings.pop("do_sample", False)
        seed = settings.pop("seed", 0)
        until = settings.pop("until")
        special_tokens = lm.tokenizer.special_tokens
        controls = {
            "temperature": 0.0 if is_greedy else 1.0,
            # no limit unless the task or the model has one
            "top_k": lm.generation_defaults.get("top_k"),
            "seed": [seed + number for number in numbers],
            **settings,
        }
        return lm.generate_from_ids(
            [ids[-room:] or [self.prefix_token_id] for ids in prompts],
            max_new_tokens,
            stop=[text for text in until if text and text not in special_tokens],
            stop_ids=[
                *lm.stop_ids,
                *(special_tokens[text] for text in until if text in special_tokens),
            ],
            **controls,
        )

    @property
    def tokenizer_name(self) -> str:
        """A name that differs whenever the tokenizer does, for lm-eval's caches."""
        tokenizer = self.lm.tokenizer
        return f"{type(tokenizer).__name__}-{tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The chat template's source, for lm-eval's records."""
        return self._chat_template().template if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as one text.

        Args:
            chat_history: Messages with `"role"` and `"content"`.
            add_generation_prompt: Whether an answer is to begin behind it. If not, it
                ends with the content of the last message, which is to be continued.

        Raises:
            ValueError: The model has no chat template.
        """
        text = self._chat_template().render(
            chat_history, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        content = chat_history[-1]["content"].strip()
        return text[: text.rindex(content) + len(content)]

    def _chat_template(self):
        if self.lm.chat_template is None:
            raise ValueError(
                "The model has no chat template. Evaluate it without "
                "`apply_chat_template`, or give LanguageModel a `chat_template`."
            )
        return self.lm.chat_template

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results."""
        model = self.lm.model
        return {
            "model_num_parameters": model.count_params(),
            "model_dtype": model.dtype_policy.name,
            "model_source": self.lm.source,
        }
