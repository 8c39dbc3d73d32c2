"""The vision-language judge by a model of a few thousand random weights, saved and loaded as a published one is.

What it answers means nothing; how first tokens, batches, files and errors are handled, does.
"""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.judges.tiny_vlm import save_tiny_vlm
from webssl_fast.config.filter import VlmConfig, VlmThresholds
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.judges import vlm
from webssl_fast.judges.base import Unjudged

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_vlm(tmp_path_factory.mktemp("tiny_vlm")))


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    """Of other shapes, so that they are cut into other numbers of tiles."""
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((40, 60), (64, 64), (100, 30), (9, 80), (7, 7))
    ]


def judge_of(model: str, **settings) -> vlm.VlmJudge:
    return vlm.VlmJudge(VlmConfig(model=model, **{"precision": "fp32", "device": "cpu", **settings}))


def judged(judge: vlm.VlmJudge, images: list[np.ndarray]) -> list:
    return judge.judge(judge.prepare(images))


def test_first_token_probability_is_that_of_a_direct_forward(model, images):
    """In fp64 from the model's own logits of one image and one question, without padding, cache or generate."""
    from transformers import Idefics3Processor, SmolVLMForConditionalGeneration

    network = SmolVLMForConditionalGeneration.from_pretrained(model).eval()
    processor = Idefics3Processor.from_pretrained(model)
    vocabulary = processor.tokenizer.get_vocab()
    spellings = {
        word: [number for entry, number in vocabulary.items() if entry.replace("Ġ", "").lower() == word]
        for word in ("yes", "no")
    }
    assert len(spellings["yes"]) == len(spellings["no"]) == 4, "yes, Yes, YES, with a space before it or without"
    found = judged(judge_of(model), images)
    for image, scores in zip(images, found, strict=True):
        for name, question in (("light", VlmConfig().light_question), ("heavy", VlmConfig().heavy_question)):
            text = f"<|im_start|>User: <image>{question}<end_of_utterance>\nAssistant:"
            inputs = processor(text=[text], images=[[Image.fromarray(image)]], return_tensors="pt")
            with torch.no_grad():
                logits = network(**inputs).logits[0, -1].double()
            p = torch.softmax(logits, 0)
            yes, no = (float(p[spellings[word]].sum()) for word in ("yes", "no"))
            assert scores[f"{name}_probability"] == pytest.approx(yes / (yes + no), abs=1e-5)


@pytest.mark.parametrize("answer", ["first_token", "generated"])
def test_batches_do_not_change_an_answer(model, images, answer):
    judge = judge_of(model, answer=answer)
    together = judged(judge, images)
    alone = [judged(judge, [image])[0] for image in images]
    assert len({scores["light_probability"] for scores in together}) > 1 or answer == "generated"
    for a, b in zip(together, alone, strict=True):
        assert {k: v for k, v in a.items() if k.endswith("_text")} == {
            k: v for k, v in b.items() if k.endswith("_text")
        }
        if answer == "first_token":
            assert a == pytest.approx(b, abs=1e-5)


def test_a_generated_answer_is_what_the_model_says(model, images):
    """The first token of it is the likeliest one of the direct forward, and as many follow as were asked for."""
    from transformers import Idefics3Processor, SmolVLMForConditionalGeneration

    network = SmolVLMForConditionalGeneration.from_pretrained(model).eval()
    processor = Idefics3Processor.from_pretrained(model)
    text = f"<|im_start|>User: <image>{VlmConfig().light_question}<end_of_utterance>\nAssistant:"
    inputs = processor(text=[text], images=[[Image.fromarray(images[0])]], return_tensors="pt")
    with torch.no_grad():
        token = int(network(**inputs).logits[0, -1].argmax())
    (scores,) = judged(judge_of(model, answer="generated", max_new_tokens=1), images[:1])
    assert scores["light_text"] == processor.tokenizer.decode([token]).strip()
    assert scores["light_probability"] == vlm.yes_or_no(scores["light_text"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes.", 1.0),
        (" yes, it does", 1.0),
        ("NO", 0.0),
        ("No, there is", 0.0),
        ("not sure", None),
        ("", None),
        ("yesterday", None),
    ],
)
def test_generated_text_is_read(text, expected):
    assert vlm.yes_or_no(text) == expected


def test_probability_of_yes_sums_over_spellings():
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]))
    found = vlm.probability_of_yes(logits, torch.tensor([0, 1]), torch.tensor([3]))
    torch.testing.assert_close(found, torch.tensor([0.3 / 0.7, 0.5 / 0.75]))
    huge = vlm.probability_of_yes(
        torch.tensor([[3e4, -3e4]], dtype=torch.bfloat16), torch.tensor([0]), torch.tensor([1])
    )
    assert huge.tolist() == [1.0]


def test_bf16_is_near_fp32(model, images):
    for a, b in zip(judged(judge_of(model), images), judged(judge_of(model, precision="bf16"), images), strict=True):
        assert a == pytest.approx(b, abs=0.05)


def test_one_image_that_the_processor_refuses_leaves_the_others(model, images, monkeypatch):
    judge = judge_of(model)
    process = judge._processor

    def picky(text, images, **options):
        if any(image.size == (7, 7) for (image,) in images):
            raise ValueError("height must be at least 8")
        return process(text=text, images=images, **options)

    monkeypatch.setattr(judge, "_processor", picky)
    *others, last = judged(judge, images)
    assert last == Unjudged("the model's processor does not take it: ValueError: height must be at least 8")
    assert all("light_probability" in scores for scores in others)
    assert isinstance(judged(judge, images[-1:])[0], Unjudged)


def test_answers_by_threshold():
    scores = {"light_probability": np.array([0.2, 0.5, np.nan], np.float32)}
    scores["heavy_probability"] = np.array([0.9, 0.1, np.nan], np.float32)
    light, heavy = vlm.answers(scores, VlmThresholds(light=0.5, heavy=0.8))
    assert (light.tolist(), heavy.tolist()) == ([False, True, False], [True, False, False])


def test_a_vocabulary_without_yes(model, monkeypatch):
    judge = judge_of(model)
    with pytest.raises(UserError, match="no token 'maybe'.*judge.answer=generated"):
        judge._spellings("maybe")


def test_models_that_cannot_be_loaded(tmp_path, model, monkeypatch):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        judge_of(str(tmp_path / "nowhere"))
    weights = torch.load  # a pickle would run what is planted in it: it must not be opened
    folder = save_tiny_vlm(tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    with pytest.raises(ConfigError, match="cannot be loaded"):
        judge_of(str(folder))
    monkeypatch.setattr(torch, "load", weights)
    monkeypatch.setattr(vlm, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"transformers.*webssl_fast\[filter,hf\]"):
        vlm.check(VlmConfig())


def test_the_paper_s_questions_word_for_word():
    """arXiv 2504.01017, App. A."""
    config = VlmConfig()
    assert config.light_question == "Does this image contain any readable text? Answer only yes or no."
    assert config.heavy_question == (
        "Please think carefully before answering. Does this image contain charts, tables, or documents with readable "
        "text? Answer only yes or no."
    )


def test_the_pixels_of_both_questions_are_in_memory_once(model, images):
    inputs = judge_of(model).prepare(images).inputs
    assert inputs["light"]["pixel_values"] is inputs["heavy"]["pixel_values"]
    assert inputs["light"]["input_ids"].shape != inputs["heavy"]["input_ids"].shape


def test_workers_take_the_gpus_in_turn(monkeypatch):
    class Process:
        name = "MainProcess"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(vlm.multiprocessing, "current_process", Process)
    found = {}
    for name in ("MainProcess", "SpawnProcess-1", "SpawnProcess-2", "SpawnProcess-3"):
        Process.name = name
        found[name] = vlm._device(VlmConfig()).index
    assert list(found.values()) == [0, 0, 1, 0]
    assert vlm._device(VlmConfig(device="cpu")).type == "cpu"
