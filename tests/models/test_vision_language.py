"""The vision-language model: where image tokens come to stand and what they are, and answers that depend on nothing but
the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_language import write_tiny_language_model
from webssl_fast.config.schema import ModelConfig
from webssl_fast.errors import UserError
from webssl_fast.models.chat import IMAGE_ID, ChatFormat
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.language import load_causal_model, load_tokenizer
from webssl_fast.models.square_images import normalized, square_image
from webssl_fast.models.vision_language import Adapter, LanguageSide, VisionLanguageModel, resize_tokens
from webssl_fast.models.vision_language_files import EncoderIdentity, load_vision_language, save_vision_language
from webssl_fast.models.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Asked:
    prompt: str
    image: Any = None
    max_new_tokens: int = 12


def photo(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def encoder() -> BackboneEncoder:
    backbone = VisionTransformer(ModelConfig(preset="vit_nano_patch14", image_size_px=56))
    backbone.initialize(0, "backbone")
    return BackboneEncoder(backbone, "nano").eval()


def make_model(encoder: BackboneEncoder, folder, newline: bool = False) -> VisionLanguageModel:
    source = str(write_tiny_language_model(folder, tied=False, std=0.5))
    llm = load_causal_model(source, torch.float32)
    adapter = Adapter(encoder.width, 32, 9, newline)
    adapter.initialize(0, "adapter")
    return VisionLanguageModel(encoder, adapter, llm, ChatFormat(load_tokenizer(source))).eval()


def bilinear_fp64(grid_hwD: np.ndarray, size: int) -> np.ndarray:
    """Pixel centres at (i + 1/2) * old / new - 1/2, weights by distance, the edge repeated."""
    side = len(grid_hwD)
    matrix = np.zeros((size, side))
    for i in range(size):
        at = max((i + 0.5) * side / size - 0.5, 0.0)
        low = min(int(at), side - 1)
        matrix[i, low] += 1 - (at - low)
        matrix[i, min(low + 1, side - 1)] += at - low
    return np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid_hwD)


@pytest.mark.parametrize(("side", "size"), [(16, 24), (37, 24), (8, 8), (27, 24), (2, 5)])
def test_resized_tokens_match_the_formula(side, size):
    grid = np.random.default_rng(0).standard_normal((side, side, 3))
    tokens_1ND = torch.from_numpy(grid.reshape(1, side * side, 3)).float()
    found = resize_tokens(tokens_1ND, size * size)
    assert found.dtype == torch.float32
    expected = bilinear_fp64(grid, size).reshape(1, size * size, 3)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)  # positions in fp32


def test_bf16_tokens_are_resized_in_fp32():
    tokens = torch.randn(1, 16, 4).bfloat16()
    assert torch.equal(resize_tokens(tokens, 9), resize_tokens(tokens.float(), 9))


def test_rejects_grids_that_are_no_squares():
    for num_patches, num_tokens in ((15, 9), (16, 8)):
        with pytest.raises(ValueError, match="must be squares"):
            resize_tokens(torch.zeros(1, num_patches, 2), num_tokens)
    with pytest.raises(ValueError, match="must be a square, got 8"):
        Adapter(4, 4, 8)


def test_the_adapter_is_two_layers_with_a_gelu():
    adapter = Adapter(6, 5, 4).double()
    adapter.initialize(0, "adapter")
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    hidden = x @ adapter.up.weight.T + adapter.up.bias
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    torch.testing.assert_close(adapter(x), hidden @ adapter.down.weight.T + adapter.down.bias)
    assert adapter.num_places == 4


def test_a_newline_ends_each_row():
    plain, with_newline = Adapter(6, 5, 9), Adapter(6, 5, 9, image_newline=True)
    for adapter in (plain, with_newline):
        adapter.initialize(0, "adapter")
    x = torch.randn(2, 9, 6)
    found = with_newline(x)
    assert found.shape == (2, 12, 5) and with_newline.num_places == 12
    newlines = [3, 7, 11]
    assert torch.equal(found[:, newlines], with_newline.newline.expand(2, 3, 5))
    assert torch.equal(found[:, [i for i in range(12) if i not in newlines]], plain(x))


def test_image_tokens_stand_in_their_places(tmp_path):
    language = LanguageSide(load_causal_model(str(write_tiny_language_model(tmp_path)), torch.float32))
    ids = torch.tensor([[1, IMAGE_ID, IMAGE_ID, 5], [7, 8, 9, 10], [IMAGE_ID, IMAGE_ID, 11, 0]])
    images = torch.arange(2 * 2 * 32).float().view(2, 2, 32)
    embedded = language.embed(ids, images)
    table = language.llm.get_input_embeddings().weight
    assert torch.equal(embedded[0, 1:3], images[0]) and torch.equal(embedded[2, :2], images[1])
    assert torch.equal(embedded[1], table[ids[1]]) and torch.equal(embedded[0, 3], table[5])


def test_logits_are_those_of_the_wanted_columns(tmp_path):
    language = LanguageSide(load_causal_model(str(write_tiny_language_model(tmp_path)), torch.float32).eval())
    ids, columns = torch.tensor([[1, 9, 8, 7, 6], [1, 5, 4, 0, 0]]), torch.tensor([1, 3])
    some = language(ids, torch.zeros(1, 2, 32), columns)
    torch.testing.assert_close(some, language.llm(input_ids=ids).logits[:, columns])
    alone = language(ids[1:, :3], torch.zeros(1, 2, 32), columns[:1])
    torch.testing.assert_close(some[1:, :1], alone, msg="padding at the end is not seen")


def test_an_answer_does_not_depend_on_its_neighbours(encoder, tmp_path):
    model = make_model(encoder, tmp_path)
    questions = [
        Asked("What?", lambda: photo(1)),
        Asked("No image at all, and a far longer question than the others have"),
        Asked("Which of them is it?", lambda: photo(2)),
        Asked("What?", lambda: photo(3), max_new_tokens=5),
    ]
    together = list(model.answers(questions, batch_size=3))
    assert together == list(model.answers(questions, batch_size=1)) and len(together) == 4
    assert len(set(together)) > 1


def test_an_image_changes_the_answer(encoder, tmp_path):
    model = make_model(encoder, tmp_path)
    answers = {next(model.answers([Asked("What?", lambda seed=seed: photo(seed))])) for seed in range(8)}
    assert len(answers) > 1


def test_saved_and_loaded_it_answers_alike(encoder, tmp_path):
    model = make_model(encoder, tmp_path / "llm", newline=True)
    save_vision_language(model, tmp_path / "model", EncoderIdentity("nano", "runs/nano", "abc", 56))
    loaded = load_vision_language(tmp_path / "model", encoder, "abc")
    questions = [Asked("What?", lambda: photo(1)), Asked("Why?", lambda: photo(2))]
    assert list(loaded.answers(questions)) == list(model.answers(questions))
    for name, tensor in model.adapter.state_dict().items():
        assert torch.equal(loaded.adapter.state_dict()[name], tensor)


def test_rejects_another_encoder(encoder, tmp_path):
    save_vision_language(
        make_model(encoder, tmp_path / "llm"), tmp_path / "m", EncoderIdentity("nano", "a/b", "abc", 56)
    )
    with pytest.raises(UserError, match=r"trained with the encoder nano \(a/b, sha256 abc.*does not know"):
        load_vision_language(tmp_path / "m", encoder, "def")


def test_images_are_padded_with_the_mean_colour(encoder):
    wide = Image.new("L", (112, 56), 255)
    square = square_image(wide, encoder)
    assert square.shape == (3, 56, 56) and square.dtype == torch.uint8
    mean = torch.tensor([int(255 * m) for m in encoder.preprocessing.mean], dtype=torch.uint8)
    assert torch.equal(square[:, 0, 0], mean) and torch.equal(square[:, -1, 30], mean)
    assert (square[:, 28] == 255).all()
    assert normalized(square, encoder)[:, 0, 0].abs().max() < 0.02, "the mean colour is zero to the encoder"
