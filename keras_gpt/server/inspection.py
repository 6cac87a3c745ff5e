"""What the page shows beside text: the model, its alternatives, attention and run."""

import asyncio
import codecs
import contextlib
import math
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from keras_gpt.controls import CONTROLS
from keras_gpt.generation.scoring import find_alternatives
from keras_gpt.language_model import read_attention
from keras_gpt.language_model.completion import encode_messages, encode_prompts
from keras_gpt.runs import report
from keras_gpt.runs.overview import read_status
from keras_gpt.server.errors import ApiError
from keras_gpt.server.requests import Message
from keras_gpt.server.service import Served
from keras_gpt.training.events import read_samples

_MOST_TOKENS = 512  # that alternatives are shown of
_MOST_ATTENTION = 128  # tokens, of which the weights grow with the square
_MOST_POINTS = 500  # of a curve
_SHOWN = ("temperature", "top_k", "top_p", "min_p")

router = APIRouter(prefix="/inspect")


class InspectRequest(BaseModel):
    """A text to look into: a prompt, or a conversation, and what followed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    completion: str = ""

    @model_validator(mode="after")
    def _check_one(self):
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either `prompt` or `messages`")
        return self

    def encode(self, lm) -> tuple[list[int], int]:
        """All token ids, and how many of them are what was given to the model.

        Raises:
            ApiError: It can't be encoded.
        """
        try:
            new = lm.tokenizer.encode(self.completion)
            if self.messages is None:
                [ids] = encode_prompts(lm.tokenizer, self.prompt)
            else:
                messages = [message.to_dict() for message in self.messages]
                ids = encode_messages(lm, messages, len(new))
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        return ids + new, len(ids)


class AttentionRequest(InspectRequest):
    """The same, and a layer to look at."""

    layer: Annotated[int, Field(ge=0)] = 0


@router.get("/model")
async def describe(service: Served):
    """What the page offers."""
    lm, settings = service.lm, service.settings
    config = lm.model.config
    defaults = {name: CONTROLS[name].default for name in _SHOWN}
    defaults |= lm.generation_defaults
    return {
        "name": settings.name,
        "num_parameters": lm.model.count_params(),
        "context_length": config.context_length,
        "num_layers": config.num_layers,
        "num_heads": config.num_heads,
        "vocab_size": config.vocab_size,
        "models": [
            {
                "name": name,
                "can_chat": service.find_model(name).chat_template is not None,
            }
            for name in service.names
        ],
        "has_run": settings.run is not None,
        "most_new_tokens": settings.max_tokens,
        "defaults": {name: defaults[name] for name in _SHOWN},
    }


@router.post("/tokens")
async def inspect_tokens(asked: InspectRequest, service: Served):
    """Each token of a text with its probability and the likeliest in its place."""
    lm = service.find_model(asked.model)
    ids, num_given = asked.encode(lm)
    most = min(_MOST_TOKENS, lm.model.config.context_length)
    read = ids[:most]  # no token depends on what is behind it
    log_probs, others, their_log_probs = await _compute(
        service, lambda: find_alternatives(lm.model, read, adapter=lm.adapter)
    )
    probabilities = [None, *np.exp(log_probs[:-1]).tolist()]
    alternatives = [
        [
            {"text": _text(lm, i), "probability": p}
            for i, p in zip(row.tolist(), np.exp(values).tolist(), strict=True)
        ]
        for row, values in zip(others, their_log_probs, strict=True)
    ]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens = [
        {
            "id": token_id,
            # what is certain, so that all together are the text
            "text": decoder.decode(lm.tokenizer.decode_bytes([token_id])),
            "name": _text(lm, token_id),
            "probability": probability,
            "alternatives": row,
        }
        for token_id, probability, row in zip(
            read, probabilities, [[], *alternatives[:-1]], strict=True
        )
    ]
    return {
        "tokens": tokens,
        "next": alternatives[-1] if len(read) == len(ids) else [],
        "num_given": num_given,
        "num_left_out": len(ids) - len(read),
    }


@router.post("/attention")
async def inspect_attention(asked: AttentionRequest, service: Served):
    """What each token attends to, by each head of a layer."""
    lm = service.find_model(asked.model)
    num_layers = lm.model.config.num_layers
    if asked.layer >= num_layers:
        raise ApiError(
            400,
            f"`layer` must be from 0 to {num_layers - 1}. Received: {asked.layer}.",
            param="layer",
        )
    ids, num_given = asked.encode(lm)
    read = ids[: min(_MOST_ATTENTION, lm.model.config.context_length)]
    attention = await _compute(service, lambda: read_attention(lm, read))
    heads = np.round(attention.weights[asked.layer].astype("float64"), 3)
    return {
        "tokens": attention.tokens,
        # of each head, for each token a weight for itself and for each before it
        "weights": [[row[: i + 1].tolist() for i, row in enumerate(h)] for h in heads],
        "num_given": num_given,
        "num_left_out": len(ids) - len(read),
    }


@router.get("/run")
def describe_run(service: Served):
    """Losses and samples of the run that the model is from."""
    if service.settings.run is None:
        raise ApiError(404, "The model isn't from a run.")
    folder = Path(service.settings.run)
    training, validation = [], []
    # one that has just begun has no log; one that goes on may be writing it
    with contextlib.suppress(OSError, ValueError):
        log = report.read_log(folder / report.LOG_FILE)
        training = report.read_training_losses(folder, log)
        validation = np.stack([log["step"], log["val_loss"]], axis=-1)
    status = read_status(folder)
    left = status.seconds_left
    samples = read_samples(folder / report.EVENTS_FOLDER)
    return {
        "name": folder.absolute().name,
        "state": status.state,
        "step": status.step,
        "steps": status.steps,
        "seconds_left": left if left is not None and math.isfinite(left) else None,
        "training": _thin(training),
        "validation": _thin(validation),
        "samples": [{"step": step, "text": text} for step, text in samples[-50:]],
    }


async def _compute(service, function):
    """What a function of the model returns, between two of the scheduler's steps."""
    try:
        return await asyncio.wrap_future(service.scheduler.call(function))
    except ValueError as error:
        raise ApiError(400, str(error)) from error


def _text(lm, token_id):
    """A token by itself, for a label."""
    # a pretrained model's vocabulary may be padded with ids that mean nothing
    if token_id >= lm.tokenizer.vocab_size:
        return f"[{token_id}]"
    return lm.tokenizer.token(token_id)


def _thin(points):
    """At most so many points, of those that can be drawn."""
    points = [point for point in np.array(points).tolist() if np.isfinite(point).all()]
    step = math.ceil(len(points) / _MOST_POINTS) or 1
    return points[::-step][::-1]
