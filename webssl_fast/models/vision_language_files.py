"""A VisionLanguageModel in a folder: config.json, adapter.safetensors, and language_model/ as transformers writes it,
with its tokenizer. The encoder stays where it is, and another one is refused."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from webssl_fast.errors import UserError
from webssl_fast.models.chat import ChatFormat
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.language import load_causal_model, load_tokenizer
from webssl_fast.models.vision_language import Adapter, LanguageSide, VisionLanguageModel
from webssl_fast.models.weight_files import read_json

CONFIG, ADAPTER, LANGUAGE_MODEL = "config.json", "adapter.safetensors", "language_model"
_KIND = "webssl vision-language model"


@dataclass(frozen=True)
class EncoderIdentity:
    """source: where it was loaded from; sha256: of what it computes."""

    name: str
    source: str
    sha256: str
    image_size_px: int


def save_adapter(adapter: Adapter, path: Path, identity: EncoderIdentity) -> None:
    """Written whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()}
    save_file(tensors, partial, {name: str(value) for name, value in asdict(identity).items()})
    os.replace(partial, path)


def read_adapter(path: Path, like: Adapter, encoder: Encoder, sha256: str) -> dict[str, torch.Tensor]:
    """The tensors of a file for an adapter of the shape of `like`, on an encoder with this hash.

    Raises UserError where the file is damaged, of another shape, or of another encoder.
    """
    try:
        with safe_open(path, framework="pt") as file:
            known, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no intact adapter ({error}); remove it to train it again") from None
    if known.get("sha256") != sha256:
        raise UserError(
            f"{path} was trained with the encoder {known.get('name')} ({known.get('source')}, sha256 "
            f"{str(known.get('sha256'))[:12]}...), and is now given {encoder.name} (sha256 {sha256[:12]}...), whose "
            "features it does not know; name that encoder, or another output_dir for this one"
        )
    shapes, wanted = ({name: tuple(t.shape) for name, t in each.items()} for each in (tensors, like.state_dict()))
    if shapes != wanted:
        raise UserError(f"{path} holds {shapes}, and the config asks for {wanted}; set it back, or train another one")
    return tensors


def read_identity(folder: Path) -> EncoderIdentity:
    """Of the encoder that a folder's model was trained with. Raises UserError where it holds no such model."""
    return EncoderIdentity(**_read_config(folder)["encoder"])


def _read_config(folder: Path) -> dict[str, Any]:
    content = read_json(folder / CONFIG)
    if content.get("kind") != _KIND:
        raise UserError(f"{folder / CONFIG} is of no {_KIND}; expected a folder that `webssl vqa` wrote")
    return content


def save_vision_language(model: VisionLanguageModel, folder: Path, identity: EncoderIdentity) -> None:
    """Writes the folder, which must not exist, whole or not at all."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    adapter = model.adapter
    save_adapter(adapter, unfinished / ADAPTER, identity)
    model.language.llm.save_pretrained(unfinished / LANGUAGE_MODEL)
    model.chat.tokenizer.chat_template = model.chat.template  # with which it was trained
    model.chat.tokenizer.save_pretrained(unfinished / LANGUAGE_MODEL)
    content = {
        "kind": _KIND,
        "encoder": asdict(identity),
        "num_image_tokens": adapter.side**2,
        "image_newline": adapter.newline is not None,
        "system_prompt": model.chat.system_prompt,
    }
    (unfinished / CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, folder)


def load_vision_language(
    folder: Path, encoder: Encoder, sha256: str, device: torch.device | str = "cpu"
) -> VisionLanguageModel:
    """The model in eval mode on `device`, its language model in the dtype of its files.

    sha256  of `encoder`
    Raises UserError where the folder holds no such model, or one that was trained with another encoder.
    """
    content, source = _read_config(folder), str(folder / LANGUAGE_MODEL)
    llm = load_causal_model(source)
    adapter = Adapter(encoder.width, LanguageSide(llm).width, content["num_image_tokens"], content["image_newline"])
    adapter.load_state_dict(read_adapter(folder / ADAPTER, adapter, encoder, sha256))
    chat = ChatFormat(load_tokenizer(source), system_prompt=content["system_prompt"])
    model = VisionLanguageModel(encoder, adapter, llm, chat)
    return model.to(device).eval().requires_grad_(False)
