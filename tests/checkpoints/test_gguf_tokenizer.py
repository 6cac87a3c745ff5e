import io
import itertools
import json

import gguf
import pytest
import sentencepiece
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import pre_tokenizers

import keras_gpt
from keras_gpt.checkpoints import read_gguf, write_gguf
from keras_gpt.checkpoints.gguf.file import read_gguf_file
from keras_gpt.checkpoints.gguf.tokenizer import tokenizer_from_gguf
from keras_gpt.data import embedded_corpus
from keras_gpt.tokenizers import BytePairTokenizer

HARD = [
    "I'll say they don't; WE'VE said IT'S so, o'clock",
    "12345 3.14159 1,000,000 abc123def ½ ² ٣٤٥ \uff11\uff12",
    "你好\uff0c世界。 здравствуй, мир! مرحبا بالعالم हिन्दी",
    "👩‍👩‍👧‍👦 🎉🎉 naïve façade",
    "a   b \n\n\n c\t\td  \r\n e\u00a0f\u3000g ",
    " a space in front",
    "x+=1; y==2!! $5 ~ ^a|b <tag> `code` (see [1])",
    "HTMLParser camelCase __init__",
]


def make_lm(tokenizer):
    """A tiny model with more embeddings than the tokenizer has tokens."""
    config = keras_gpt.GPTConfig(
        vocab_size=1504,
        context_length=8,
        embedding_dimension=4,
        num_layers=1,
        num_heads=1,
        position_embedding="rotary",
        normalization="rms_norm",
        activation="swiglu",
        use_bias=False,
    )
    return keras_gpt.LanguageModel(keras_gpt.GPT(config), tokenizer)


@pytest.fixture(scope="module")
def documents():
    return [*itertools.islice(embedded_corpus(), 20), *HARD]


@pytest.fixture(scope="module")
def byte_pair(documents):
    return BytePairTokenizer.train(
        documents,
        vocab_size=1500,
        special_tokens=["<|endoftext|>", "<|user|>"],
        progress=False,
    )


@pytest.fixture(scope="module")
def settings(byte_pair, tmp_path_factory):
    """The settings in the file of a tiny model."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(make_lm(byte_pair), path)
    return read_gguf_file(path)[0]


@pytest.fixture(scope="module")
def pieces(documents):
    """A SentencePiece model with Llama 2's options."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(documents),
        model_writer=model,
        model_type="bpe",
        vocab_size=900,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def piece_settings(pieces):
    """What llama.cpp's converter writes of it."""
    ids = range(pieces.vocab_size())
    types = dict.fromkeys(ids, 1)
    types |= {i: 6 for i in ids if pieces.is_byte(i)}
    types |= {i: 3 for i in ids if pieces.is_control(i)}
    types |= {pieces.unk_id(): 2}
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [pieces.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [pieces.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [types[i] for i in ids],
        "tokenizer.ggml.bos_token_id": pieces.bos_id(),
        "tokenizer.ggml.eos_token_id": pieces.eos_id(),
        "tokenizer.ggml.unknown_token_id": pieces.unk_id(),
    }


def transformers_tokenizer(settings, path):
    """The tokenizer that Transformers makes of the settings."""
    import transformers

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in settings.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str) and key != "general.architecture":
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def tokenizer_json(tokenizer, folder):
    tokenizer.save(folder)
    return (folder / "tokenizer.json").read_text("utf-8")


def encode(transformers_tokenizer, texts):
    """Ids of plain text, in which no special token is recognized."""
    batch = transformers_tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True
    )
    return batch["input_ids"]


@pytest.mark.parametrize("rule", ["gpt-2", "llama-bpe", "qwen2", "tekken"])
def test_ids_equal_transformers(rule, settings, documents, tmp_path):
    settings = settings | {"tokenizer.ggml.pre": rule}
    theirs = transformers_tokenizer(settings, tmp_path / "model.gguf")
    # where a word that is a token isn't merged, llama.cpp does so and Transformers not
    model = json.loads(theirs.backend_tokenizer.to_str())
    model["model"]["ignore_merges"] = rule in ("llama-bpe", "tekken")
    theirs._tokenizer = HuggingFaceTokenizer.from_str(json.dumps(model))
    ours = tokenizer_from_gguf(settings)
    assert ours.encode_batch(documents) == encode(theirs, documents)
    assert [ours.decode(ids) for ids in ours.encode_batch(documents)] == documents


def test_smollm_splits_digits(settings, byte_pair, documents, tmp_path):
    settings = settings | {"tokenizer.ggml.pre": "smollm"}
    # as in SmolLM2's tokenizer.json
    theirs = HuggingFaceTokenizer.from_str(tokenizer_json(byte_pair, tmp_path))
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    theirs.encode_special_tokens = True
    expected = [encoding.ids for encoding in theirs.encode_batch(documents)]
    ours = tokenizer_from_gguf(settings)
    assert ours.encode_batch(documents) == expected
    assert [ours.token(i) for i in ours.encode("2024")] == list("2024")


def test_the_default_rule_splits_punctuation_off(settings, byte_pair):
    assert len(byte_pair.encode(" (")) == 1
    tokenizer = tokenizer_from_gguf(settings | {"tokenizer.ggml.pre": "default"})
    tokens = [tokenizer.token(i) for i in tokenizer.encode("a (b")]
    assert tokens == ["a", " ", "(", "b"]


def test_qwen2_composes_characters_as_its_own_tokenizer_does(settings):
    tokenizer = tokenizer_from_gguf(settings | {"tokenizer.ggml.pre": "qwen2"})
    assert tokenizer.encode("cafe\u0301") == tokenizer.encode("caf\u00e9")


def test_a_byte_level_tokenizer_is_read_back(settings, byte_pair, documents):
    tokenizer = tokenizer_from_gguf(settings)
    assert tokenizer.special_tokens == byte_pair.special_tokens
    assert tokenizer.vocab_size == byte_pair.vocab_size  # without the filling
    assert len(settings["tokenizer.ggml.tokens"]) == 1504
    assert tokenizer.encode_batch(documents) == byte_pair.encode_batch(documents)
    again = tokenizer_from_gguf(settings)
    assert again.fingerprint == tokenizer.fingerprint


def test_control_tokens_are_special_and_user_defined_ones_are_not(settings):
    user = settings["tokenizer.ggml.tokens"].index("<|user|>")
    types = list(settings["tokenizer.ggml.token_type"])
    types[user] = 4
    tokenizer = tokenizer_from_gguf(settings | {"tokenizer.ggml.token_type": types})
    assert list(tokenizer.special_tokens) == ["<|endoftext|>"]
    assert tokenizer.encode("<|user|>") == [user]
    assert len(tokenizer.encode("<|endoftext|>")) > 1
    end = [tokenizer.end_of_text_id]
    assert tokenizer.encode("<|endoftext|>", allow_special=True) == end


@pytest.mark.parametrize(
    ("rule", "asked", "starts"),
    [
        ("gpt-2", None, False),
        ("gpt-2", True, True),
        ("llama-bpe", None, True),
        ("llama-bpe", False, False),
    ],
)
def test_the_start_token_stands_in_front_where_it_should(rule, asked, starts, settings):
    settings = settings | {"tokenizer.ggml.pre": rule, "tokenizer.ggml.bos_token_id": 7}
    settings["tokenizer.ggml.add_bos_token"] = asked
    if asked is None:
        del settings["tokenizer.ggml.add_bos_token"]
    assert tokenizer_from_gguf(settings).start_ids == ([7] if starts else [])


def test_the_start_token_is_written(settings, byte_pair, tmp_path):
    starting = settings | {"tokenizer.ggml.add_bos_token": True}
    tokenizer = tokenizer_from_gguf(starting)
    assert tokenizer.start_ids == [byte_pair.end_of_text_id]
    write_gguf(make_lm(tokenizer), tmp_path / "start.gguf")
    read = read_gguf(tmp_path / "start.gguf").tokenizer
    assert read.fingerprint == tokenizer.fingerprint


def test_files_of_gpt2_may_leave_out_the_rule(settings, byte_pair):
    settings = settings | {"general.architecture": "gpt2"}
    del settings["tokenizer.ggml.pre"]
    assert tokenizer_from_gguf(settings).encode_batch(HARD) == byte_pair.encode_batch(
        HARD
    )


def test_sentence_pieces_have_the_librarys_ids(pieces, piece_settings, documents):
    tokenizer = tokenizer_from_gguf(piece_settings)
    assert tokenizer.encode_batch(documents) == pieces.encode(documents)
    assert tokenizer.start_ids == [pieces.bos_id()]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in HARD] == HARD
    assert set(tokenizer.special_tokens) == {"<unk>", "<s>", "</s>"}


def test_sentence_pieces_equal_transformers(piece_settings, documents, tmp_path):
    theirs = transformers_tokenizer(piece_settings, tmp_path / "model.gguf")
    ours = tokenizer_from_gguf(piece_settings)
    # Transformers puts no second space in front of one
    texts = [text for text in documents if not text.startswith(" ")]
    assert ours.encode_batch(texts) == encode(theirs, texts)


@pytest.mark.parametrize("adds_space", [True, False])
def test_sentence_pieces_are_read_back(adds_space, piece_settings, tmp_path):
    settings = piece_settings | {"tokenizer.ggml.add_space_prefix": adds_space}
    tokenizer = tokenizer_from_gguf(settings)
    write_gguf(make_lm(tokenizer), tmp_path / "pieces.gguf")
    read = read_gguf(tmp_path / "pieces.gguf").tokenizer
    assert read.fingerprint == tokenizer.fingerprint


def test_merges_that_no_scores_give_are_not_written(piece_settings, tmp_path):
    tokenizer = tokenizer_from_gguf(piece_settings)
    content = json.loads(tokenizer_json(tokenizer, tmp_path / "saved"))
    content["model"]["merges"].reverse()
    lm = make_lm(BytePairTokenizer(json.dumps(content)))
    with pytest.raises(ValueError, match="aren't those of a SentencePiece model"):
        write_gguf(lm, tmp_path / "reversed.gguf")


def test_the_space_in_front_can_be_switched_off(pieces, piece_settings):
    settings = piece_settings | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = tokenizer_from_gguf(settings)
    assert tokenizer.encode(" the cat") == pieces.encode("the cat")
    assert tokenizer.decode(tokenizer.encode(" the cat")) == " the cat"


def test_a_file_without_tokenizer_has_none():
    assert tokenizer_from_gguf({"general.architecture": "llama"}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer.ggml.pre": "deepseek-llm"}, "tokenizer.ggml.pre='deepseek-llm'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre=None"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model='bert'"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens isn't a list"),
        ({"tokenizer.ggml.tokens": [1, 2]}, "tokenizer.ggml.tokens isn't a list"),
        ({"tokenizer.ggml.token_type": [1]}, "isn't one number for each token"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges isn't a list"),
        ({"tokenizer.ggml.merges": ["ab"]}, "'ab', which is no pair"),
        ({"tokenizer.ggml.merges": ["zzzz qqqq"]}, "merges don't fit its vocabulary"),
        ({"tokenizer.ggml.model": "llama"}, "scores isn't one number for each token"),
    ],
)
def test_bad_tokenizers_are_refused(changes, message, settings):
    with pytest.raises(ValueError, match=message):
        tokenizer_from_gguf(settings | changes)


def test_a_rule_that_llama_cpp_lacks_is_not_written(byte_pair, tmp_path):
    content = json.loads(tokenizer_json(byte_pair, tmp_path))
    content["normalizer"] = {"type": "Lowercase"}
    lm = make_lm(BytePairTokenizer(json.dumps(content)))
    with pytest.raises(ValueError, match=r"normalizer=.*Lowercase"):
        write_gguf(lm, tmp_path / "lower.gguf")


def test_a_tokenizer_without_merges_is_not_written(tmp_path):
    lm = make_lm(BytePairTokenizer.train(["a"], vocab_size=300, progress=False))
    with pytest.raises(ValueError, match="needs a tokenizer with merges"):
        write_gguf(lm, tmp_path / "bytes.gguf")


def test_smollm2_has_the_ids_of_transformers(documents, smollm2_file):
    import transformers

    path = smollm2_file
    theirs = transformers.AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name
    )
    # Transformers passes over tokenizer.ggml.pre; this is SmolLM2's own
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    checkpoint = read_gguf(path)
    ours = checkpoint.tokenizer
    assert ours.encode_batch(documents) == encode(theirs, documents)
    text = checkpoint.chat_template.render([{"role": "user", "content": "Hi 12"}])
    messages = [{"role": "user", "content": "Hi 12"}]
    assert text == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    expected = theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.encode(text, allow_special=True) == expected
