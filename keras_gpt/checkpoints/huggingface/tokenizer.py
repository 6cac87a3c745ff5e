"""Tokenizers as Hugging Face's `tokenizer.json`, with the same ids."""

from pathlib import Path

from keras_gpt.tokenizers import CharacterTokenizer, SentencePieceTokenizer, Tokenizer
from keras_gpt.tokenizers.base import SPACE_MARK

_UNKNOWN = "<|unknown|>"  # of a CharacterTokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer for Transformers, vLLM and llama.cpp, but for its settings.

    Args:
        tokenizer: One of `keras_gpt.tokenizers`.
        folder: Gets a `tokenizer.json`, and for SentencePiece a `tokenizer.model`. For
            its model_type "unigram" only this: the library of `tokenizer.json` chooses
            another of several equally likely cuts.
    """
    if isinstance(tokenizer, CharacterTokenizer):
        result = _from_characters(tokenizer)
    else:
        tokenizer.save(folder)
        if not isinstance(tokenizer, SentencePieceTokenizer):
            return
        result = _from_pieces(folder / tokenizer.file_name)
    if result is None:
        return
    from tokenizers import AddedToken, decoders

    for name in sorted(tokenizer.special_tokens, key=tokenizer.token_id):
        token = AddedToken(name, special=True, normalized=False)
        result.add_special_tokens([token])
    parts = [decoders.ByteFallback(), decoders.Fuse()]
    result.decoder = decoders.Sequence(parts)
    (folder / "tokenizer.json").write_text(result.to_str(pretty=True), "utf-8")


def _from_characters(tokenizer):
    """Each character is a word; one outside the vocabulary is an error there too."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    ids = {tokenizer.token(i): i for i in range(tokenizer.vocab_size)}
    if len(ids) < tokenizer.vocab_size:
        raise ValueError(
            "A special token can't be named like a character. Received: "
            f"special_tokens={list(tokenizer.special_tokens)}. Use `save`."
        )
    unknown = _UNKNOWN if _UNKNOWN in ids else "<unk>"
    result = HuggingFaceTokenizer(models.WordLevel(ids, unk_token=unknown))
    result.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return result


def _from_pieces(path):
    """The merges that follow from pieces and scores; `None` for a unigram model."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as HuggingFaceTokenizer
    from tokenizers import models

    processor = SentencePieceProcessor(model_file=str(path))
    ids, scores = {}, {}
    for i in range(processor.vocab_size()):
        piece = processor.id_to_piece(i)
        kinds = (processor.is_byte, processor.is_control, processor.is_unknown)
        if not any(is_kind(i) for is_kind in kinds):
            # Plain spaces, so that a "▁" of the text has no piece and becomes bytes
            piece = piece.replace(SPACE_MARK, " ")
            scores[piece] = processor.get_score(i)
        ids[piece] = i
    # the score of a merge is its rank, that of a unigram its log-probability
    if any(score != round(score) for score in scores.values()):
        return None
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=scores.get, reverse=True)
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    options = {"byte_fallback": True, "unk_token": processor.id_to_piece(0)}
    return HuggingFaceTokenizer(models.BPE(ids, merges, **options))
