from __future__ import annotations

import pytest
import torch

from tests import packaged
from webssl_fast.errors import ConfigError
from webssl_fast.models import tokenizer as module
from webssl_fast.models.tokenizer import load_tokenizer

# Tokens of OpenAI's tokenizer, checked against the package instant-clip-tokenizer.
KNOWN = {
    "a photo of a cat": [320, 1125, 539, 320, 2368],
    "Hello, World!": [3306, 267, 1002, 256],
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("", 12)


@pytest.mark.parametrize("text", KNOWN)
def test_known_tokens(tokenizer, text):
    tokens_BN, num_tokens_B = tokenizer([text])
    expected = [49406, *KNOWN[text], 49407]
    assert tokens_BN[0].tolist() == expected + [0] * (12 - len(expected)) and num_tokens_B.tolist() == [len(expected)]
    assert tokenizer.vocabulary_size == 49408


def test_html_and_space_are_cleaned(tokenizer):
    tokens_BN, _ = tokenizer(["tom &amp;amp; jerry", "  Tom \n&\tJerry "])
    assert torch.equal(*tokens_BN)


def test_a_long_text_keeps_its_end(tokenizer):
    tokens_BN, num_tokens_B = tokenizer(["cat " * 50])
    assert tokens_BN[0].tolist() == [49406] + [2368] * 10 + [49407] and num_tokens_B.tolist() == [12]


def test_marks_in_a_text_are_text(tokenizer):
    tokens_BN, _ = tokenizer(["a <|endoftext|> b"])
    assert (tokens_BN == 49407).sum() == 1


def test_a_tokenizer_of_transformers():
    tokenizer = load_tokenizer(str(packaged.minilm()), 12)
    tokens_BN, num_tokens_B = tokenizer(["a cat", "a photograph of a cat " * 9])
    assert tokens_BN[0, :4].tolist() == [101, 1037, 4937, 102]  # BERT's [CLS] a cat [SEP]
    assert num_tokens_B.tolist() == [4, 12] and tokens_BN[1, -1] == 102


def test_names_what_is_missing(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="no tokenizer can be loaded from there"):
        load_tokenizer(str(tmp_path), 12)
    monkeypatch.setattr(module, "_VOCABULARY_PACKAGE", "no_such_package")
    with pytest.raises(ConfigError, match="pip install --no-deps open-clip-torch"):
        load_tokenizer("", 12)
