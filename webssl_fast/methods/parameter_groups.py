"""Which parameters share a learning rate and a weight decay (DINOv2's rules, which contain MAE's)."""

from __future__ import annotations

import re

from torch import nn

from webssl_fast.config.schema import OptimConfig
from webssl_fast.methods.base import ParameterGroup

FIRST_LAYER = ("patch_embed", "pos_embed", "cls_token", "mask_token", "register_tokens")


def vit_parameter_groups(
    networks: nn.Module, depth: int, optim: OptimConfig, last_layer_frozen_steps: int = 0
) -> list[ParameterGroup]:
    """Groups by equal factors, of the parameters of `networks`, whose vision transformer is its `backbone`.

    Learning rate: layerwise_decay ** (depth + 1 - layer), where the embeddings are layer 0, block i is i + 1, and the
    final norm and what is not the backbone (heads, a decoder) are depth + 1; the patch projection has a factor of its
    own on top. Weight decay: none on
    biases, norms and LayerScale; it does apply to tokens, position embedding and the prototypes' norms. Prototypes
    (`last_layer`) stand still for the first steps.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, p in networks.named_parameters():
        layer = depth + 1
        if match := re.match(r"backbone\.blocks\.(\d+)\.", name):
            layer = int(match.group(1)) + 1
        elif name.startswith("backbone.") and name.split(".")[1] in FIRST_LAYER:
            layer = 0
        lr_factor = optim.layerwise_decay ** (depth + 1 - layer)
        if ".patch_embed." in f".{name}":
            lr_factor *= optim.patch_embed_lr_factor
        decayed = not (name.endswith(("bias", "gamma")) or "norm" in name)
        frozen_steps = last_layer_frozen_steps if ".last_layer." in f".{name}" else 0
        groups.setdefault((lr_factor, float(decayed), frozen_steps), []).append(p)
    return [
        ParameterGroup(
            f"lr{lr_factor:g}_wd{decay:g}" + ("_last_layer" if frozen else ""), parameters, lr_factor, decay, frozen
        )
        for (lr_factor, decay, frozen), parameters in groups.items()
    ]
