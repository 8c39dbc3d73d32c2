"""A whole CLIP or SigLIP network for transformers: VisionTextDualEncoderModel of a Dinov2Model and a CLIPTextModel.

It is the one class of transformers that takes our towers as they are: CLIPModel's and SiglipModel's image networks have
neither SwiGLU nor LayerScale. Its logits are exp(logit_scale) * cosine, without SigLIP's bias.

Dimensions: J width of the joint space, V of the image network, D of the text tower.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from webssl_fast.config.schema import TextConfig
from webssl_fast.errors import UserError
from webssl_fast.models.checkpoint_layouts import State, Weights, to_hugging_face
from webssl_fast.models.convert import CONFIG, PREPROCESSOR, hugging_face_config, write_model_folder
from webssl_fast.models.hf_preprocessing import preprocessor_config
from webssl_fast.models.presets import WEB_DINO, preset, text_preset
from webssl_fast.models.tokenizer import TextTokenizer
from webssl_fast.records import Preprocessing

_TEXT_NAMES = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "pos_embed": "embeddings.position_embedding.weight",
    "norm.weight": "final_layer_norm.weight",
    "norm.bias": "final_layer_norm.bias",
}
_TEXT_BLOCK_NAMES = {"norm1": "layer_norm1", "norm2": "layer_norm2", "attn.proj": "self_attn.out_proj"}
_QKV = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True)
class PairWeights:
    """Both towers and what joins them.

    text               a TextTransformer's state_dict
    vision_projection  [J, V]
    text_projection    [J, D]
    log_scale          a scalar, the logarithm of what cosines are multiplied by
    logit_bias         SigLIP's; None: there is none
    """

    vision: Weights
    text: State
    text_config: TextConfig
    vision_projection: Tensor
    text_projection: Tensor
    log_scale: Tensor
    logit_bias: float | None
    tokenizer: TextTokenizer


def write_dual_encoder(pairs: PairWeights, folder: Path, preprocessing: Preprocessing) -> None:
    """Writes config.json, safetensors, preprocessor_config.json and the tokenizer's files.

    UserError where the folder exists, or the image network is none of Web-DINO's architecture.
    """
    name = pairs.vision.preset
    if preset(name).architecture != WEB_DINO:
        raise UserError(
            f"{pairs.vision.source} has the image network {name}, which transformers has as a ViTModel; that one's "
            "output for pairs goes through a pooling layer that ours lacks. Its image network alone goes with --to hf"
        )
    state = {f"vision_model.{key}": tensor for key, tensor in to_hugging_face(pairs.vision.backbone).items()}
    # Twice: transformers 4 has the inner module, transformers 5 takes the name for its own.
    state |= {f"text_model.text_model.{key}": tensor for key, tensor in _text_tensors(pairs.text)}
    state["visual_projection.weight"] = pairs.vision_projection
    state["text_projection.weight"] = pairs.text_projection
    state["logit_scale"] = pairs.log_scale
    files = {CONFIG: dual_encoder_config(pairs), PREPROCESSOR: preprocessor_config(preprocessing)}
    write_model_folder(folder, files | pairs.tokenizer.hugging_face_files(), state)


def dual_encoder_config(pairs: PairWeights) -> dict:
    """config.json. SigLIP's bias stands there too, as `logit_bias`, which transformers keeps and does not use."""
    text, size = pairs.text_config, text_preset(pairs.text_config.preset)
    joint_dim = pairs.vision_projection.shape[0]
    return {
        "architectures": ["VisionTextDualEncoderModel"],
        "model_type": "vision-text-dual-encoder",
        "projection_dim": joint_dim,
        "logit_scale_init_value": float(pairs.log_scale),
        **({} if pairs.logit_bias is None else {"logit_bias": pairs.logit_bias}),
        "torch_dtype": str(pairs.log_scale.dtype).removeprefix("torch."),
        "vision_config": hugging_face_config(pairs.vision),
        "text_config": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "hidden_size": size.width,
            "intermediate_size": 4 * size.width,
            "num_hidden_layers": size.depth,
            "num_attention_heads": size.num_heads,
            "hidden_act": text.activation,
            "layer_norm_eps": 1e-5,
            "attention_dropout": 0.0,
            "max_position_embeddings": text.context_length,
            "vocab_size": text.vocabulary_size,
            "projection_dim": joint_dim,
            "bos_token_id": pairs.tokenizer.start_id,
            # Where it first stands the tower is read out, so texts are padded with it.
            "eos_token_id": pairs.tokenizer.end_id,
            "pad_token_id": pairs.tokenizer.end_id,
        },
    }


def _text_tensors(text: State) -> Iterator[tuple[str, Tensor]]:
    """A TextTransformer's tensors under CLIPTextModel's names."""
    for name, tensor in text.items():
        if name in _TEXT_NAMES:
            yield _TEXT_NAMES[name], tensor
            continue
        _, block, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        layer = f"encoder.layers.{block}"
        if part == "attn.qkv":
            for projection, third in zip(_QKV, tensor.chunk(3), strict=True):
                yield f"{layer}.self_attn.{projection}.{kind}", third.contiguous()
        else:
            yield f"{layer}.{_TEXT_BLOCK_NAMES.get(part, part)}.{kind}", tensor
