"""A SmolVLM of a few thousand weights, drawn at random, with a tokenizer made on the spot: for mechanics alone."""

from __future__ import annotations

import json
from pathlib import Path

import torch

TEXTS = [
    "Does this image contain any readable text? Answer only yes or no. Yes no. yes No. YES NO yes, no,",
    "Please think carefully before answering. Does this image contain charts, tables, or documents?",
] * 50
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
IMAGE_PX, PATCH_PX, SCALE = 32, 8, 2
IMAGE_SEQ_LEN = (IMAGE_PX // PATCH_PX // SCALE) ** 2


def save_tiny_vlm(folder: Path, seed: int = 0) -> Path:
    """Writes a model, its processor and tokenizer as `save_pretrained` does; without torchvision."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

    tokenizer = _tokenizer()
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(tokenizer), "num_key_value_heads": 2, "pad_token_id": 0, **text,
        },
        vision_config={"image_size": IMAGE_PX, "patch_size": PATCH_PX, **vision},
        scale_factor=SCALE,
        image_token_id=image_token_id,
        pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)  # else every answer is equally likely
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # What a SmolVLM2 repository has beside its weights.
    size = {"size": {"longest_edge": 2 * IMAGE_PX}, "max_image_size": {"longest_edge": IMAGE_PX}}
    image = {"image_processor_type": "SmolVLMImageProcessor", "do_image_splitting": True, **size}
    image |= {"processor_class": "SmolVLMProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": IMAGE_SEQ_LEN}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    grid = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<|endoftext|>", "<|im_start|>", "<image>", "<fake_token_around_image>", "<global-img>", *grid]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=[*special, "<end_of_utterance>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
