"""The ids of long texts, of which only the first words are read, against those of the whole texts."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import WORDS
from places import MINILM
from tokenizers import AddedToken, Encoding, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from indexer.encoder.models import resolve_model
from indexer.encoder.prefix import first_words, reads_words_alone
from indexer.encoder.tokens import TextTokenizer
from indexer.errors import EncoderError

SPACES = [" ", " ", " ", " ", "  ", "   ", "\n", " \n", "\n ", "\t", "\r\n", "\u00a0", " \u3000", "\u2028"]
# Letters that NFKC makes a space or a mark of, letters that join what follows, marks, and what counts as punctuation.
PIECES = [
    *WORDS[:20],
    *["a", "b", "7", "Ünï", "\u00b4", "\u037a", "\ufe70", "\uff9e", "\u0d4e", "\u0301", "\u0600", "é", "e\u0301", "ß"],
    *["中", "国文", "한국어", "привет", "مرحبا", "हिन्दी", "🚀", "👩\u200d🚀", "\u200b", "\x07", "▁", "a▁b"],
    *[".", ",", "'s", "don't", "``", "''", "_", "x_", "_\n", "[SEP]", "<mask>", "</s>", "term", "İ"],
]
texts_of_pieces = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from([*SPACES, ""])), min_size=1).map(
    lambda parts: "".join(piece + space for piece, space in parts)
)


def byte_level(**more: object) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **more})
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS), "a  b   c\n\n d     e"] * 3, trainer)
    return with_ends(tokenizer)


def metaspace(normalizer: object, *before: object, **more: object) -> Tokenizer:
    """A Unigram that knows words, some pieces and single letters, as tokenizers made from sentencepiece do."""
    characters = sorted({character for piece in PIECES for character in piece} | set("▁\n\t etaoinshrdlu"))
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(f"▁{word}", -3.0 - number / 50) for number, word in enumerate(dict.fromkeys(WORDS))]
    pieces += [("s▁t", -4.0), ("▁▁", -5.0), ("a▁", -3.5), ("a\n", -4.0), ("▁\n", -4.0)]
    pieces += [(character, -9.0 - number / 100) for number, character in enumerate(characters)]
    tokenizer = Tokenizer(Unigram(list(dict(pieces).items()), unk_id=0))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, pre_tokenizers.Metaspace(**more)])
    return with_ends(tokenizer)


def with_ends(tokenizer: Tokenizer) -> Tokenizer:
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.add_special_tokens(["<s>", "</s>", AddedToken("<mask>", lstrip=True)])
    runs = [AddedToken(run, normalized=False) for run in ("   ", "\n\n")]
    tokenizer.add_tokens([AddedToken("term", rstrip=True, single_word=True), *runs])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return tokenizer


def collapsing(content: str) -> normalizers.Normalizer:
    steps = [normalizers.Replace("``", '"'), normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    strip = normalizers.Strip(left=False, right=True)
    return normalizers.Sequence([*steps, normalizers.Nmt(), strip, normalizers.Replace(Regex(" {2,}"), content)])


def minilm_tokenizer() -> Tokenizer:
    directory = resolve_model(MINILM, allow_download=False).directory
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def accents(tokenizer: Tokenizer, normalizer: object) -> Tokenizer:
    tokenizer.normalizer = normalizer
    return tokenizer


MAKERS = {
    "minilm": minilm_tokenizer,
    "byte level": byte_level,
    "byte level, space first": lambda: byte_level(add_prefix_space=True),
    "byte level, NFKC": lambda: accents(byte_level(), normalizers.NFKC()),
    "byte level, no accents": lambda: accents(
        byte_level(), normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
    ),
    "metaspace": lambda: metaspace(normalizers.NFC()),
    "metaspace, collapsing": lambda: metaspace(collapsing("▁")),
    "metaspace, first": lambda: metaspace(collapsing(" "), prepend_scheme="first"),
    "metaspace, digits": lambda: metaspace(normalizers.Replace(" ", "▁"), pre_tokenizers.Digits()),
    "metaspace of words": lambda: metaspace(collapsing(" "), pre_tokenizers.WhitespaceSplit()),
    "metaspace, prepended": lambda: metaspace(normalizers.Prepend("▁"), prepend_scheme="never"),
}


@functools.cache
def made(name: str) -> Tokenizer:
    return MAKERS[name]()


@pytest.fixture(params=MAKERS, scope="module")
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "minilm":
        request.getfixturevalue("minilm")
    return made(request.param)


class Counting:
    """A tokenizer that counts the characters it is given."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self.given: list[list[int]] = []

    def encode_batch_fast(self, texts: Sequence[str]) -> list[Encoding]:
        self.given.append([len(text) for text in texts])
        return self._backend.encode_batch_fast(texts)


def counting(backend: Tokenizer) -> tuple[TextTokenizer, Counting]:
    tokenizer = TextTokenizer(backend)
    tokenizer._backend = Counting(backend)
    return tokenizer, tokenizer._backend


def whole(backend: Tokenizer, text: str, max_length: int) -> tuple[list[int], int]:
    """The oracle: ids of the whole text, the middle of them cut out, and how many there were."""
    ids = backend.encode(text).ids
    return (ids if len(ids) <= max_length else [*ids[: max_length - 1], ids[-1]]), len(ids)


@given(texts=st.lists(st.tuples(texts_of_pieces, st.integers(1, 40)), max_size=4), max_length=st.integers(3, 12))
@settings(deadline=None, max_examples=150)
def test_the_ids_are_those_of_the_whole_text(backend: Tokenizer, texts: list[tuple[str, int]], max_length: int) -> None:
    long = [part * times for part, times in texts]
    tokenizer = TextTokenizer(backend)
    tokens = tokenizer.encode(long, max_length)
    for number, text in enumerate(long):
        ids, n_tokens = whole(backend, text, max_length)
        assert tokens.row(number).tolist() == ids
        assert (tokens.n_tokens[number] > max_length) == (n_tokens > max_length)
        if len(text) <= 32 * max_length or n_tokens <= max_length:
            assert tokens.n_tokens[number] == n_tokens


@given(text=texts_of_pieces, times=st.integers(1, 40), max_length=st.integers(3, 12))
@settings(deadline=None, max_examples=100)
def test_all_tokens_of_the_first_words_are_the_first_of_the_whole_text(
    backend: Tokenizer, text: str, times: int, max_length: int
) -> None:
    text *= times
    words = first_words(text, max_length)
    assert text.startswith(words)
    ids = backend.encode(words, add_special_tokens=False).ids
    assert backend.encode(text, add_special_tokens=False).ids[: len(ids)] == ids


def test_no_word_and_no_space_at_the_cut_changes_the_tokens_before_it(backend: Tokenizer) -> None:
    for piece, space, before in product(PIECES, SPACES, ("", " ", "  ")):
        text = f"{'the cat ' * 4}a{before}{piece}{space}{'y' * 90}"
        words = first_words(text, 3)
        assert len(words) < 48, "there is a place before the piece"
        ids = backend.encode(words, add_special_tokens=False).ids
        assert backend.encode(text, add_special_tokens=False).ids[: len(ids)] == ids


def test_it_is_used_for_tokenizers_of_every_kind(backend: Tokenizer) -> None:
    text = " ".join(WORDS * 50)
    tokenizer, counted = counting(backend)
    tokens = tokenizer.encode([text, "the cat"], 16)
    assert counted.given == [[len(first_words(text, 16)), len("the cat")], []]
    assert 200 < counted.given[0][0] <= 256
    assert tokens.row(0).tolist() == whole(backend, text, 16)[0]


def test_a_text_is_cut_from_32_characters_a_token_on_to_16_behind_a_whole_word() -> None:
    text = "word " * 64
    assert first_words(text, 10) == text
    assert first_words(text + "x", 10) == ("word " * 32)[:-1]
    assert first_words("é " * 200, 10) == ("é " * 80)[:-1]


@pytest.mark.parametrize("unit", ["x", " ", "x\n", "x\u00a0", "x. ", "x_ ", "\ufe70 "])
def test_a_text_is_not_cut_elsewhere(unit: str) -> None:
    assert first_words(unit * 400, 10) == unit * 400


def test_a_text_whose_first_words_are_too_few_is_read_whole(backend: Tokenizer) -> None:
    texts = ["the" + " " * 4000, "the cat" + " " * 300 + "sat on the mat " * 9, "中" * 300, "the cat"]
    tokenizer, counted = counting(backend)
    tokens = tokenizer.encode(texts, 8)
    assert counted.given == [[3, 7, 300, 7], [4003, len(texts[1])]]
    expected = [whole(backend, text, 8) for text in texts]
    assert [tokens.row(number).tolist() for number in range(4)] == [ids for ids, _ in expected]
    assert tokens.n_tokens.tolist() == [n_tokens for _, n_tokens in expected]


def test_the_count_of_a_text_that_is_cut_is_estimated_from_its_first_words() -> None:
    backend = byte_level()
    text = "the cat " * 100 + "abcdefghi " * 100
    words = first_words(text, 16)
    assert len(words) < 300
    tokens = TextTokenizer(backend).encode([text, text[: 32 * 16]], 16)
    assert tokens.n_tokens[0] == round(len(backend.encode(words)) * len(text) / len(words))
    assert tokens.n_tokens[1] == len(backend.encode(text[: 32 * 16]))
    assert tokens.lengths.tolist() == [16, 16]


def test_estimates_of_real_texts_are_near(minilm: str, cranfield_texts: list[str]) -> None:
    tokenizer = TextTokenizer(minilm_tokenizer())
    long = [" ".join(cranfield_texts[at : at + 10]) for at in range(0, 60, 10)]
    estimated, exact = tokenizer.encode(long, 64).n_tokens, tokenizer.encode(long, 10_000).n_tokens
    assert (estimated != exact).any()
    np.testing.assert_allclose(estimated, exact, rtol=0.3)


def test_a_lone_surrogate_in_what_is_read_is_an_error_of_ours() -> None:
    with pytest.raises(EncoderError, match="surrogate"):
        TextTokenizer(byte_level()).encode(["a \udc80 b " * 100], 8)


class InPython:
    def pre_tokenize(self, pretok: object) -> None:
        raise NotImplementedError

    def normalize(self, normalized: object) -> None:
        raise NotImplementedError


BYTES, META, SPLIT = pre_tokenizers.ByteLevel(), pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()
UNKNOWN_SPLITS = [
    None,
    pre_tokenizers.ByteLevel(use_regex=False),
    pre_tokenizers.Metaspace(split=False),
    pre_tokenizers.Metaspace(replacement="_"),
    pre_tokenizers.Punctuation(),
    pre_tokenizers.Split(" ", "merged_with_previous"),
    pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("a b"), "isolated"), SPLIT]),
    pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(use_regex=False)]),
    pre_tokenizers.PreTokenizer.custom(InPython()),
    pre_tokenizers.Sequence([pre_tokenizers.PreTokenizer.custom(InPython()), SPLIT]),
]


@pytest.mark.parametrize("pre_tokenizer", UNKNOWN_SPLITS, ids=range(len(UNKNOWN_SPLITS)))
def test_texts_are_read_whole_where_words_may_span_spaces(pre_tokenizer: object) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = SPLIT
    assert reads_words_alone(tokenizer)
    tokenizer.pre_tokenizer = pre_tokenizer
    assert not reads_words_alone(tokenizer)


UNKNOWN_FORMS = [
    (SPLIT, normalizers.Replace(" ", "▁")),
    (SPLIT, normalizers.Replace(Regex(" {2,}"), "▁")),
    (META, normalizers.Replace(" ", "")),
    (META, normalizers.Replace("a b", "c")),
    (META, normalizers.Replace("a▁b", "c")),
    (META, normalizers.Replace(Regex(r"a\s+"), "c")),
    (BYTES, normalizers.Replace("a", "")),
    (BYTES, normalizers.Replace("a", "b ")),
    (BYTES, normalizers.BertNormalizer()),
    (META, normalizers.BertNormalizer()),
    (BYTES, normalizers.ByteLevel()),
    (SPLIT, normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex("a"), "b")])),
    (SPLIT, normalizers.Normalizer.custom(InPython())),
]


@pytest.mark.parametrize(("pre_tokenizer", "normalizer"), UNKNOWN_FORMS, ids=range(len(UNKNOWN_FORMS)))
def test_texts_are_read_whole_where_the_normalizer_may_look_past_a_word(
    pre_tokenizer: object, normalizer: object
) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    assert reads_words_alone(tokenizer)
    tokenizer.normalizer = normalizer
    assert not reads_words_alone(tokenizer)


@pytest.mark.parametrize(
    ("token", "is_fine"),
    [("two words", False), ("end ", False), ("end▁", False), ("a\u00b4b", False), (" begin", True), ("    ", True)],
)
def test_texts_are_read_whole_where_an_added_token_may_span_words(token: str, is_fine: bool) -> None:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = SPLIT
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken(token, normalized=True)])
    assert reads_words_alone(tokenizer) == is_fine


def test_a_token_that_the_model_has_no_embedding_for_is_an_error(tiny_bert: Path, tmp_path: Path) -> None:
    directory = copytree(tiny_bert, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("brandnew")])
    tokenizer.save(str(directory / "tokenizer.json"))
    known = TextTokenizer.load(resolve_model(str(directory), None, allow_download=False))
    assert len(known.encode(["a"], 8).ids)
    with pytest.raises(EncoderError, match=f"embeddings for {config['vocab_size']} tokens"):
        known.encode(["a brandnew word"], 8)
