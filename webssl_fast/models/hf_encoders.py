"""Frozen encoders of others, through transformers: DINOv2, DINOv3, ViT (Web-MAE), MAE, I-JEPA, CLIP, MetaCLIP, SigLIP.

transformers is imported when one is loaded. Outputs of single blocks are taken by hooks on the blocks themselves, since
what `output_hidden_states` returns differs between models and versions (some put the last one through the norm).

Dimensions: B images, H height and W width in pixels, N tokens, P side of a patch in pixels, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from webssl_fast.errors import UserError
from webssl_fast.models.encoders import ClsSource, block_indices
from webssl_fast.models.hf_preprocessing import FILE_NAMES, parse_preprocessing
from webssl_fast.models.weight_files import read_json, safetensors_files
from webssl_fast.records import Features, Preprocessing


@dataclass(frozen=True)
class Family:
    """Where the parts of one kind of transformers model are.

    final_norm      attribute of the normalisation after the last block. CLIP puts its class token alone through it;
                    here it is applied to every token
    cls_source      as in Encoder
    options         of its config or its constructor
    resizes         takes interpolate_pos_encoding, without which it refuses other sizes than the native one
    other_weights   beginnings of what a checkpoint holds besides (text towers, decoders, classifiers)
    """

    model: str
    block: str
    final_norm: str
    cls_source: ClsSource = "cls_token"
    options: tuple[tuple[str, Any], ...] = ()
    resizes: bool = True
    other_weights: tuple[str, ...] = ()


_NO_POOLER = (("add_pooling_layer", False),)  # an untrained layer, where a checkpoint has one at all
_TEXT = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "logit_bias")
_HEADS = ("pooler.", "classifier.")


def _contrastive(name: str, cls_source: ClsSource = "cls_token", **more: Any) -> Family:
    return Family(
        f"{name}VisionModel", f"{name}EncoderLayer", "post_layernorm", cls_source, other_weights=_TEXT, **more
    )


FAMILIES = {
    "dinov2": Family("Dinov2Model", "Dinov2Layer", "layernorm", resizes=False, other_weights=_HEADS),
    "dinov2_with_registers": Family(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersLayer", "layernorm", resizes=False, other_weights=_HEADS
    ),
    "dinov3_vit": Family("DINOv3ViTModel", "DINOv3ViTLayer", "norm", resizes=False),
    "vit": Family("ViTModel", "ViTLayer", "layernorm", options=_NO_POOLER, other_weights=_HEADS),
    "vit_mae": Family(
        "ViTMAEModel", "ViTMAELayer", "layernorm", options=(("mask_ratio", 0.0),), other_weights=("decoder.",)
    ),
    "ijepa": Family("IJepaModel", "IJepaLayer", "layernorm", "patch_mean", options=_NO_POOLER, other_weights=_HEADS),
    "clip": _contrastive("CLIP"),
    "metaclip_2": _contrastive("MetaClip2"),
    "siglip": _contrastive("Siglip", "pooled"),
    "siglip2": _contrastive("Siglip2", "pooled", resizes=False),
}
_UNUSED = ("mask_token", "position_ids")  # no frozen pass reads them, so a checkpoint may lack them


class HuggingFaceEncoder(nn.Module):
    """A transformers vision model as an `Encoder`; its images may also be of its native size, whole patches or not."""

    name: str
    patch_size: int
    width: int
    num_blocks: int
    image_size_px: int
    cls_source: ClsSource
    preprocessing: Preprocessing

    def __init__(self, model: nn.Module, name: str, preprocessing: Preprocessing):
        """`preprocessing`: for any size. ValueError for a model of another kind than FAMILIES."""
        super().__init__()
        config: Any = model.config
        self.model, self.name = model, name
        self.family = family_of(config.model_type)
        vision = getattr(config, "vision_config", config)
        self.patch_size, self.width = _side(vision.patch_size), vision.hidden_size
        self.num_blocks = vision.num_hidden_layers
        self.image_size_px = native_size_px(vision)
        self.preprocessing = preprocessing.at(self.image_size_px)
        self.cls_source = self.family.cls_source
        self._pooling = [m for name, m in model.named_modules() if name.rpartition(".")[2] == "head"]
        if self.cls_source == "pooled" and not self._pooling:
            self.cls_source = "patch_mean"
        registers = getattr(vision, "num_register_tokens", 0)
        self._num_prefix_tokens = 1 + registers if self.cls_source == "cls_token" else 0
        self._blocks = [module for module in model.modules() if type(module).__name__ == self.family.block]
        self._final_norm = [m for n, m in model.named_modules() if n.rpartition(".")[2] == self.family.final_norm]
        if len(self._blocks) != self.num_blocks or len(self._final_norm) != 1:
            raise RuntimeError(
                f"{type(model).__name__} of this version of transformers has {len(self._blocks)} {self.family.block} "
                f"and {len(self._final_norm)} {self.family.final_norm}; expected {self.num_blocks} and 1"
            )

    def forward(self, images_B3HW: Tensor) -> Features:
        return self.block_features(images_B3HW, [-1])[0]

    def block_features(self, images_B3HW: Tensor, blocks: Sequence[int], *, final_norm: bool = True) -> list[Features]:
        (H, W), P = images_B3HW.shape[-2:], self.patch_size
        if (H % P or W % P) and (H, W) != (self.image_size_px, self.image_size_px):
            raise ValueError(f"images of {H}x{W} pixels do not divide into patches of {P}x{P}")
        blocks = block_indices(blocks, self.num_blocks)
        after: dict[int, Tensor] = {}

        def keep(block: int):
            def hook(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
                after[block] = output if isinstance(output, Tensor) else output[0]

            return hook

        handles = [self._blocks[i].register_forward_hook(keep(i)) for i in set(blocks)]
        try:
            self.model(**self._arguments(images_B3HW))
        finally:
            for handle in handles:
                handle.remove()
        return [self._features(after[i], final_norm, is_last=i == self.num_blocks - 1) for i in blocks]

    def _features(self, x_BND: Tensor, final_norm: bool, is_last: bool) -> Features:
        if final_norm:
            x_BND = self._final_norm[0](x_BND)
        patch_BND = x_BND[:, self._num_prefix_tokens :]
        if self.cls_source == "cls_token":
            return Features(x_BND[:, 0], patch_BND)
        if self.cls_source == "pooled" and final_norm and is_last:
            return Features(self._pooling[0](x_BND), patch_BND)
        return Features(patch_BND.mean(1), patch_BND)

    def _arguments(self, images_B3HW: Tensor) -> dict[str, Any]:
        (B, _, H, W), P = images_B3HW.shape, self.patch_size
        h, w = H // P, W // P
        kind, device = self.family.model, images_B3HW.device
        if kind == "Siglip2VisionModel":  # takes patches, channels innermost
            patches_BhwPPC = images_B3HW.unfold(2, P, P).unfold(3, P, P).permute(0, 2, 3, 4, 5, 1)
            return {
                "pixel_values": patches_BhwPPC.reshape(B, h * w, -1),
                "pixel_attention_mask": torch.ones(B, h * w, dtype=torch.long, device=device),
                "spatial_shapes": torch.tensor([[h, w]] * B, device=device),
            }
        arguments: dict[str, Any] = {"pixel_values": images_B3HW}
        if self.family.resizes:
            arguments["interpolate_pos_encoding"] = True
        if kind == "ViTMAEModel":  # sorts patches by this noise and keeps 1 - mask_ratio of them
            arguments["noise"] = torch.arange(h * w, device=device, dtype=torch.float32).expand(B, -1)
        return arguments


def load_hugging_face(source: str | Path) -> HuggingFaceEncoder:
    """The vision model in a folder of save_pretrained, or of a hub id, in fp32 on the CPU.

    Raises UserError for a kind that FAMILIES does not have, and where weights are missing, left over, ill-shaped, in a
    damaged file, or in a pickle that asks for more than tensors.
    """
    _import_transformers()
    is_local = Path(source).is_dir()
    content = read_json(Path(source) / "config.json") if is_local else _hub_json(str(source), ("config.json",))
    try:
        family = family_of(content.get("model_type"))
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if is_local and any(Path(source).glob("*.safetensors*")):
        safetensors_files(Path(source))
    model = _loaded(family, str(source), from_=str(source))
    native_px = native_size_px(getattr(model.config, "vision_config", model.config))
    file_name, content = _read_preprocessing(source, is_local)
    preprocessing = parse_preprocessing(content, file_name, native_px)
    name = Path(source).resolve().name if is_local else str(source)
    return HuggingFaceEncoder(model, name, preprocessing).eval()


def _loaded(family: Family, source: str, from_: str | None, **how: Any) -> nn.Module:
    """The model in fp32, with all of its weights and no others."""
    transformers = _import_transformers()
    model_class = getattr(transformers, family.model, None)
    if model_class is None:
        raise UserError(f"{source}: transformers {transformers.__version__} has no {family.model}; install a newer one")
    try:
        model, info = model_class.from_pretrained(
            from_, output_loading_info=True, weights_only=True, **how, **dict(family.options)
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError, UnpicklingError, SafetensorError) as error:
        raise UserError(f"{source}: transformers cannot read its {family.model} ({_first_lines(error)})") from None
    missing, left_over = (
        [name for name in info[key] if not name.endswith(_UNUSED)] for key in ("missing_keys", "unexpected_keys")
    )
    left_over = [name for name in left_over if not name.startswith(family.other_weights)]
    for what, names in (("lacks", missing), ("has no place for", left_over)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise UserError(
                f"{source}: config and weights do not belong together; the {family.model} of the config {what} "
                f"{', '.join(sorted(names)[:4])}{more}"
            )
    return model.float()


def family_of(model_type: Any) -> Family:
    """By a config's `model_type`. Raises ValueError with those that are known."""
    family = FAMILIES.get(str(model_type).removesuffix("_vision_model"))
    if family is None:
        raise ValueError(f"model_type is {model_type!r}; known are {', '.join(FAMILIES)}")
    return family


def native_size_px(vision_config: Any) -> int:
    """Side of the images that the position embedding is for."""
    if (num_patches := getattr(vision_config, "num_patches", None)) is not None:  # SigLIP 2
        return _side(vision_config.patch_size) * math.isqrt(num_patches)
    return _side(vision_config.image_size)


def _side(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else size[0]


def _read_preprocessing(source: str | Path, is_local: bool) -> tuple[str, dict[str, Any]]:
    if not is_local:
        return f"{source}/{FILE_NAMES[0]}", _hub_json(str(source), FILE_NAMES)
    for path in (Path(source) / name for name in FILE_NAMES):
        if path.is_file():
            return str(path), read_json(path)
    raise UserError(f"{source} has no {' or '.join(FILE_NAMES)}, which says how images are resized and normalised")


def _hub_json(hub_id: str, file_names: Sequence[str]) -> dict[str, Any]:
    from transformers.utils import cached_file

    for file_name in file_names:
        try:
            path = cached_file(hub_id, file_name, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError) as error:
            reason = _first_lines(error)
            raise UserError(
                f"there is no {hub_id} on this machine, and the Hugging Face hub does not give it ({reason})"
            ) from None
        if path is not None:
            return read_json(Path(path))
    raise UserError(f"{hub_id} on the Hugging Face hub has no {' or '.join(file_names)}")


def _import_transformers():
    try:
        import transformers
    except ImportError:
        raise UserError("models of the Hugging Face hub need transformers: pip install 'webssl_fast[hf]'") from None
    return transformers


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
