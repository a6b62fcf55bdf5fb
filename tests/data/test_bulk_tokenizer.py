"""The tokenizer for many texts: the same tokens as the tokenizer itself, whatever the text."""

import random

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from qwenvl.data.bulk_tokenizer import BulkTokenizer

FRAGMENTS = (
    list("  aZé9._-,;:!?'\"(){}[]<>|\\/\n\r\t\v\x1c\x85\u00a0\u2003\u200b\u3000\ufeff中あ\u0301\u030a\U0001f600")
    + ["  ", "\n\n", " \n", "\n ", "\r\n", "the", " the", "The", "don't", "'s", " 's", "'LL", "12.5", " (a", "A\u030a"]
    + ["<|im_start|>", "<|im_end|>\n", "<think>", "</think>\n\n", "<|image_pad|>", "<|im_", "end|>", "<tool_call> "]
)


def random_text(seed: int) -> str:
    """Return a text in which every pair of fragments can stand together, spaces most often."""
    source = random.Random(seed)
    return "".join(source.choice(FRAGMENTS) + " " * source.choice([0, 0, 1, 1, 2]) for _ in range(source.randrange(40)))


def assert_same(tokenize: BulkTokenizer, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> None:
    """Compare with the tokenizer called on each whole text."""
    ids, lengths = tokenize(texts)
    parts = [part.tolist() for part in np.split(ids, lengths.cumsum()[:-1])]
    assert parts == tokenizer(texts)["input_ids"]


def test_tokens_are_those_of_the_tokenizer_for_any_text(processor: ProcessorMixin):
    tokenize = BulkTokenizer(processor.tokenizer)
    assert tokenize.by_words
    for start in range(0, 4000, 500):
        texts = [random_text(seed) for seed in range(start, start + 500)]
        assert_same(tokenize, processor.tokenizer, texts)


def test_no_token_is_lost_that_spans_spaces_and_signs(processor: ProcessorMixin):
    # With tokens for every run of signs that the texts have, a cut at a wrong place would show.
    like = processor.tokenizer.backend_tokenizer
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.normalizer = like.pre_tokenizer, like.normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([random_text(seed) for seed in range(2000)], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    tokenize = BulkTokenizer(tokenizer)
    assert tokenize.by_words
    assert_same(tokenize, tokenizer, [random_text(seed) for seed in range(2000)])


def test_tokens_are_the_same_after_the_words_were_forgotten(processor: ProcessorMixin, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("qwenvl.data.bulk_tokenizer._MAX_WORDS", 3)
    tokenize = BulkTokenizer(processor.tokenizer)
    for text in ("one two three four five", "six seven one", "two"):
        assert_same(tokenize, processor.tokenizer, [text])


@pytest.mark.parametrize("change", ["words", "prefix", "stripping token", "token with a space"])
def test_a_tokenizer_that_cuts_otherwise_gets_whole_texts(own_processor: ProcessorMixin, change: str):
    tokenizer = own_processor.tokenizer
    backend = tokenizer.backend_tokenizer
    if change == "words":
        split = pre_tokenizers.Split(Regex(r"\w+ \w+"), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    elif change == "prefix":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif change == "stripping token":
        tokenizer.add_tokens([AddedToken("<sep>", lstrip=True, rstrip=True)])
    else:
        tokenizer.add_tokens(["two words"])
    tokenize = BulkTokenizer(tokenizer)
    assert not tokenize.by_words
    texts = ["There are two words  <sep> in it"] + [random_text(seed) for seed in range(50)]
    assert_same(tokenize, tokenizer, texts)


def test_no_texts_have_no_tokens(processor: ProcessorMixin):
    ids, lengths = BulkTokenizer(processor.tokenizer)([])
    assert len(ids) == len(lengths) == 0
