"""Text features of a real language model that a registry package carries, and the refusal of what is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import packaged
from webssl_fast.errors import ConfigError
from webssl_fast.models.language import load_causal_model, load_language_encoder


@pytest.fixture(scope="module")
def minilm():
    return load_language_encoder(str(packaged.minilm()))


def test_every_layer_of_every_text(minilm):
    features = minilm(["a cat", "a cat sleeps on the old wooden chair", "the stock market fell"])
    assert features.shape == (3, 7, 384) and features.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(features[0, -1], features[1:, -1])
    assert cosine[0] > cosine[1] + 0.2, "a real model knows what a cat is"


def test_padding_changes_nothing(minilm):
    texts = ["a cat", "a cat sleeps on the old wooden chair beside the fire"]
    together = minilm(texts)
    for text, features in zip(texts, together, strict=True):
        torch.testing.assert_close(minilm([text])[0], features, rtol=1e-4, atol=1e-5)


def test_rejects_an_empty_text(minilm):
    with pytest.raises(ValueError, match="number 1 is empty"):
        minilm(["a cat", " "])


def test_rejects_what_is_no_language_model(tmp_path: Path):
    (tmp_path / "config.json").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="(?s)cannot load a language model.*safetensors"):
        load_language_encoder(str(tmp_path))
    (tmp_path / "model.gguf").write_text("<html>not found</html>")
    with pytest.raises(ConfigError, match="cannot load a language model"):
        load_language_encoder(str(tmp_path / "model.gguf"))


@pytest.mark.nightly
def test_what_came_from_gguf_can_be_saved(tmp_path: Path):
    read = load_causal_model(str(packaged.smollm2()))
    read.save_pretrained(tmp_path)
    again = load_causal_model(str(tmp_path)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in read.state_dict().items())
