"""`tokenizer.json` files: the ids and texts that Transformers gives."""

import json

import pytest
import tokenizers
import transformers
from tokenizers import (
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from keras_gpt.tokenizers import BytePairTokenizer

pytestmark = pytest.mark.usefixtures("quiet_transformers")

TEXTS = [
    "",
    " ",
    "  two spaces, then\n\n\nthree lines\t and a tab ",
    "It's 'real', we're they'll DON'T 12345 3.14",
    "Ελληνικά, русский, العربية, עברית, हिन्दी",
    "中文和日本語のテキスト、한국어",
    "café cafe\u0301 ﬁne ½ 😀👩‍👩‍👧 \u200b",
    "▁ a▁b ▁▁ <0x41> <0xE2>",
    "x" * 50 + " " * 30 + "=" * 40,
    "\x00\x1f\x7f\ufeff\ufffd\r\n",
]
SPELLED = ["<s>", "a</s>b", " <|endoftext|> <|endoftext|>x", "<s> </s>\n<unk>"]


def make_byte_level(documents):
    """Llama 3's kind: bytes, and a token that the model wants before every text."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = put_start_first(tokenizer)
    return tokenizer


def make_byte_fallback(documents):
    """Llama 2's kind: characters, a space in front, bytes for what it doesn't know."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = make_normalizer()
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(
        documents, trainers.BpeTrainer(vocab_size=500, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    # some characters of other scripts have no piece
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [piece for piece in pieces if piece not in tokens]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {token: i for i, token in enumerate(tokens)},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = make_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    for name in ("<unk>", "<s>", "</s>"):
        token = tokenizers.AddedToken(name, special=True, normalized=False)
        tokenizer.add_special_tokens([token])
    tokenizer.post_processor = put_start_first(tokenizer)
    return tokenizer


def make_normalizer():
    parts = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    return normalizers.Sequence(parts)


def put_start_first(tokenizer):
    special_tokens = [("<s>", tokenizer.token_to_id("<s>"))]
    return processors.TemplateProcessing("<s> $A", special_tokens=special_tokens)


@pytest.fixture(scope="module", params=["trained here", "byte-level", "byte fallback"])
def pair(request, documents, byte_pair, tmp_path_factory):
    """The same file, read by us and by Transformers."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "trained here":
        byte_pair.save(folder)
    else:
        kinds = {"byte-level": make_byte_level, "byte fallback": make_byte_fallback}
        kinds[request.param](documents[:20]).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = BytePairTokenizer((folder / "tokenizer.json").read_text("utf-8"))
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def ids_of(theirs, text, **options):
    return theirs(text, add_special_tokens=False, **options)["input_ids"]


def test_ids_equal_those_of_transformers(pair, documents):
    ours, theirs = pair
    for text in documents[::4] + TEXTS:
        assert ours.encode(text) == ids_of(theirs, text), text[:80]
    assert ours.encode_batch(TEXTS) == [ids_of(theirs, text) for text in TEXTS]


def test_special_tokens_that_are_spelled_count_if_allowed(pair):
    ours, theirs = pair
    for text in SPELLED:
        assert ours.encode(text, allow_special=True) == ids_of(theirs, text)


def test_special_tokens_that_are_spelled_are_text_if_not(pair):
    ours, theirs = pair
    special_ids = set(ours.special_tokens.values())
    for text in SPELLED:
        ids = ours.encode(text)
        assert ids == ids_of(theirs, text, split_special_tokens=True)
        assert not special_ids & set(ids)


def test_texts_equal_those_of_transformers(pair, documents):
    ours, theirs = pair
    for text in documents[::8] + TEXTS:
        ids = ours.encode(text)
        assert ours.decode(ids) == theirs.decode(ids)


def test_special_tokens_appear_or_are_left_out_as_in_transformers(pair):
    ours, theirs = pair
    ids = ours.encode("One two") + list(ours.special_tokens.values())
    ids += ours.encode("three")
    for skip in (False, True):
        assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip)


def test_start_ids_are_what_transformers_puts_before_a_text(pair):
    ours, theirs = pair
    for text in TEXTS:
        assert ours.start_ids + ours.encode(text) == theirs(text)["input_ids"]
