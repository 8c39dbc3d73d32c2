"""Chats as tokens: what the assistant says is told from the rest under templates of several makes, against masks made
by hand; and what cannot be told is refused."""

from __future__ import annotations

import pytest

from tests.tiny_language import TEMPLATE, write_tiny_language_model
from webssl_fast.errors import ConfigError
from webssl_fast.models.chat import IMAGE_ID, ChatFormat, Turn
from webssl_fast.models.language import load_tokenizer

# As SmolLM2-Instruct publishes it.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + "
    "message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = [Turn("user", "<image>\nHow many?"), Turn("assistant", "Two."), Turn("user", "Sure?"), Turn("assistant", "Yes")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Bytes as tokens, so that a text can be read off its tokens."""
    return load_tokenizer(str(write_tiny_language_model(tmp_path_factory.mktemp("llm"))))


def texts(chat: ChatFormat, turns: list[Turn]) -> tuple[str, list[str]]:
    """The whole text, an image as "@", and the stretches that are targets."""
    encoded = chat.encode(turns)
    pieces = ["@" if i == IMAGE_ID else chat.tokenizer.convert_ids_to_tokens(int(i)) for i in encoded.token_ids]
    said, before = [], False
    for piece, is_target in zip(pieces, encoded.is_target, strict=True):
        if is_target:
            said = [*said[:-1], said[-1] + piece] if before else [*said, piece]
        before = bool(is_target)
    return "".join(pieces), said


def test_smollm2_template(tokenizer, tmp_path):
    (tmp_path / "smollm2.jinja").write_text(SMOLLM2)
    whole, said = texts(ChatFormat(tokenizer, str(tmp_path / "smollm2.jinja")), TURNS)
    assert whole == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n@\nHow many?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>"
    )
    assert said == ["Two.<|im_end|>", "Yes<|im_end|>"]


def test_llama_3_template(tokenizer):
    whole, said = texts(ChatFormat(tokenizer, "llama_3", "Be brief."), TURNS)
    assert whole == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n@\nHow many?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>"
    )
    assert said == ["Two.<|eot_id|>", "Yes<|eot_id|>"]


def test_a_template_that_marks_what_is_generated(tokenizer, tmp_path):
    marked = TEMPLATE.replace("{{ '<|' + message", "{% generation %}{{ '<|' + message", 1).replace(
        "'<|end|>' }}", "'<|end|>' }}{% endgeneration %}", 1
    )
    (tmp_path / "marked.jinja").write_text(marked)
    assert texts(ChatFormat(tokenizer, str(tmp_path / "marked.jinja")), TURNS)[1] == ["Two.<|end|>", "Yes<|end|>"]


def test_generation_is_asked_as_training_answered(tokenizer):
    chat = ChatFormat(tokenizer, "llama_3")
    encoded = chat.encode(TURNS[:2])
    asked = chat.encode_prompt(TURNS[:1])
    assert encoded.token_ids[: len(asked)].tolist() == asked.tolist()
    assert not encoded.is_target[: len(asked)].any() and encoded.is_target[len(asked) :].all()


def test_a_record_keeps_its_own_system_prompt(tokenizer):
    whole, _ = texts(ChatFormat(tokenizer, "llama_3", "Be brief."), [Turn("system", "Own."), *TURNS])
    assert "Own." in whole and "Be brief." not in whole


def test_an_image_takes_so_many_places(tokenizer):
    encoded = ChatFormat(tokenizer, "").encode(TURNS)
    placed = encoded.with_image_tokens(9)
    first = encoded.token_ids.tolist().index(IMAGE_ID)
    assert placed.token_ids.tolist() == [
        *encoded.token_ids[:first], *[IMAGE_ID] * 9, *encoded.token_ids[first + 1 :]
    ]  # fmt: skip
    assert placed.is_target.sum() == encoded.is_target.sum() and not placed.is_target[first : first + 9].any()


def test_the_turns_end_ends_an_answer(tokenizer):
    chat = ChatFormat(tokenizer, "")
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_of_turn_id) == "<|end|>"
    assert chat.end_of_turn_id in chat.stop_ids


def test_rejects_a_model_without_a_template(tmp_path):
    bare = load_tokenizer(str(write_tiny_language_model(tmp_path, template=None)))
    with pytest.raises(ConfigError, match="no chat template.*language_model.chat_template.*llama_3.*Jinja"):
        ChatFormat(bare)
    with pytest.raises(ConfigError, match="'llama3', which is neither a file.*nor one of llama_3"):
        ChatFormat(bare, "llama3")


def test_rejects_a_template_that_rewrites_what_was_said(tokenizer, tmp_path):
    (tmp_path / "forgets.jinja").write_text("{{ messages | length }}" + TEMPLATE)
    with pytest.raises(ConfigError, match="writes earlier turns in another way"):
        ChatFormat(tokenizer, str(tmp_path / "forgets.jinja"))


def test_what_a_template_refuses_is_a_bad_text(tokenizer, tmp_path):
    (tmp_path / "strict.jinja").write_text(
        "{% if messages[0]['content'] == 'no' %}{{ raise_exception('not that') }}{% endif %}" + TEMPLATE
    )
    chat = ChatFormat(tokenizer, str(tmp_path / "strict.jinja"))
    with pytest.raises(ValueError, match="not that"):
        chat.encode([Turn("user", "no"), Turn("assistant", "b")])
