"""DINOv2 pre-training in plain eager PyTorch: the named baseline of `bench_step`. Imports nothing of webssl_fast.

The same objective, written as a careful engineer would from the description of DINOv2 (arXiv 2304.07193), in DINOv2's
own structure: separate passes for global and local crops, SDPA, drop-path that computes every sample and multiplies by
a mask, materialised Sinkhorn-Knopp targets, one cross-entropy for each pair, fused AdamW, `_foreach` EMA. Where
DINOv2's own code spends more than it must (padding of the masked-token buffer, two passes for the EMA), the cheaper
form is used, so that the comparison is with good eager PyTorch and not with a straw man.

Dimensions: V crops of one kind, B images (a tensor of crops is crop-major, VB rows), N patch tokens, T = N + 1 tokens,
D width, H heads, M masked tokens, R rows, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function


@dataclass(frozen=True)
class PlainConfig:
    """Sizes and constants of one training step. The defaults are the recipe of Web-DINO on a ViT-S/14."""

    width: int = 384
    depth: int = 12
    num_heads: int = 6
    patch_size_px: int = 14
    image_size_px: int = 224
    drop_path_rate: float = 0.4
    layer_scale_init: float = 1e-5
    head_hidden_dim: int = 2048
    dino_bottleneck_dim: int = 384
    ibot_bottleneck_dim: int = 256
    num_prototypes: int = 131072

    student_temperature: float = 0.1
    teacher_temperature: float = 0.04
    sinkhorn_iterations: int = 3
    koleo_weight: float = 0.1

    lr: float = 2e-4 * math.sqrt(8 / 1024)
    weight_decay: float = 0.04
    patch_embed_lr_factor: float = 0.2
    clip_grad_norm: float = 3.0
    ema_momentum: float = 0.994

    @property
    def swiglu_hidden_dim(self) -> int:
        return (int(4 * self.width * 2 / 3) + 7) // 8 * 8

    @property
    def grid_size(self) -> int:
        return self.image_size_px // self.patch_size_px


# ---------------------------------------------------------------- backbone


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.num_heads, D // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, D))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden_dim: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden_dim)
        self.w3 = nn.Linear(hidden_dim, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, value = self.w12(x_BTD).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class LayerScale(nn.Module):
    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), init))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.gamma


class DropPath(nn.Module):
    """Zeroes the branch of a random share `rate` of the samples, after having computed it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x_BTD
        keep = 1 - self.rate
        return x_BTD * x_BTD.new_empty(len(x_BTD), 1, 1).bernoulli_(keep).div_(keep)


class Block(nn.Module):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.num_heads)
        self.ls1 = LayerScale(config.width, config.layer_scale_init)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = SwiGlu(config.width, config.swiglu_hidden_dim)
        self.ls2 = LayerScale(config.width, config.layer_scale_init)
        self.drop_path = DropPath(config.drop_path_rate)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.drop_path(self.ls1(self.attn(self.norm1(x_BTD))))
        return x_BTD + self.drop_path(self.ls2(self.mlp(self.norm2(x_BTD))))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size_px: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size_px, stride=patch_size_px)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.patch_size_px = config.patch_size_px
        self.patch_embed = PatchEmbed(config.patch_size_px, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid_size**2, config.width))
        self.mask_token = nn.Parameter(torch.zeros(1, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def interpolated_pos_embed(self, grid: int) -> Tensor:
        """Position embedding for a grid x grid crop: bicubic with the scale factor (grid + 0.1) / native grid."""
        if grid == self.grid_size:
            return self.pos_embed
        patch_part = self.pos_embed[:, 1:].float().view(1, self.grid_size, self.grid_size, -1).permute(0, 3, 1, 2)
        scale = (grid + 0.1) / self.grid_size
        patch_part = F.interpolate(patch_part, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], patch_part.flatten(2).transpose(1, 2)], dim=1)

    def forward(self, images: Tensor, mask_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, 3, S, S], mask bool [B, N] or None -> normed CLS [B, D] and patch tokens [B, N, D]."""
        x_BND = self.patch_embed(images)
        if mask_BN is not None:
            x_BND = torch.where(mask_BN.unsqueeze(-1), self.mask_token.to(x_BND.dtype), x_BND)
        x_BTD = torch.cat([self.cls_token.expand(len(x_BND), -1, -1), x_BND], dim=1)
        x_BTD = x_BTD + self.interpolated_pos_embed(images.shape[-1] // self.patch_size_px)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        x_BTD = self.norm(x_BTD)
        return x_BTD[:, 0], x_BTD[:, 1:]


# ---------------------------------------------------------------- heads


class ProjectionHead(nn.Module):
    """Linear-GELU-Linear-GELU-Linear, L2 norm, K weight-normed prototypes (magnitudes start at 1 and are trained)."""

    def __init__(self, width: int, hidden_dim: int, bottleneck_dim: int, num_prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, bottleneck_dim),
        )
        last_layer = nn.Linear(bottleneck_dim, num_prototypes, bias=False)
        for linear in (*(layer for layer in self.mlp if isinstance(layer, nn.Linear)), last_layer):
            nn.init.trunc_normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        self.last_layer = nn.utils.parametrizations.weight_norm(last_layer)
        with torch.no_grad():
            self.last_layer.parametrizations.weight.original0.fill_(1)

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x_RD), dim=-1, eps=1e-12))


# ---------------------------------------------------------------- losses


@record_function("sinkhorn_knopp")
@torch.no_grad()
def sinkhorn_knopp(logits_RK: Tensor, temperature: float, num_iterations: int) -> Tensor:
    """Targets fp32 [R, K] of SwAV's optimal assignment (arXiv 2006.09882), step by step as DINOv2 writes it."""
    Q_KR = torch.exp(logits_RK.float() / temperature).t()
    K, R = Q_KR.shape
    Q_KR /= Q_KR.sum()
    for _ in range(num_iterations):
        Q_KR /= Q_KR.sum(dim=1, keepdim=True)
        Q_KR /= K
        Q_KR /= Q_KR.sum(dim=0, keepdim=True)
        Q_KR /= R
    Q_KR *= R
    return Q_KR.t()


@record_function("prototype_cross_entropy")
def dino_loss(student_logits: Iterable[Tensor], targets: Iterable[Tensor], temperature: float) -> Tensor:
    """Sum over all (student crop, teacher crop) pairs of the mean cross-entropy over images. Each tensor is [B, K]."""
    targets = list(targets)
    total = torch.zeros((), device=targets[0].device)
    for logits_BK in student_logits:
        log_probabilities_BK = F.log_softmax(logits_BK.float() / temperature, dim=-1)
        for targets_BK in targets:
            total = total - (targets_BK * log_probabilities_BK).sum(dim=-1).mean()
    return total


@record_function("prototype_cross_entropy")
def ibot_loss(logits_MK: Tensor, targets_MK: Tensor, weights_M: Tensor, num_crops: int, temperature: float) -> Tensor:
    """Cross-entropy on masked tokens, each weighted by 1 / (masked tokens of its crop), over all crops, masked or not.

    Logits and targets are [M, K]; the result is a scalar.
    """
    log_probabilities_MK = F.log_softmax(logits_MK.float() / temperature, dim=-1)
    return -((targets_MK * log_probabilities_MK).sum(dim=-1) * weights_M).sum() / num_crops


def koleo_loss(x_BD: Tensor) -> Tensor:
    """Minus mean log distance to the nearest neighbour on the sphere (arXiv 1806.03198), in fp32."""
    with torch.autocast(x_BD.device.type, enabled=False):
        x_BD = F.normalize(x_BD.float(), dim=-1, eps=1e-8)
        with torch.no_grad():
            nearest_B = (x_BD @ x_BD.t()).fill_diagonal_(-1).argmax(dim=1)
        distance_B = F.pairwise_distance(x_BD, x_BD[nearest_B], eps=1e-8)
        return -torch.log(distance_B + 1e-8).mean()


# ---------------------------------------------------------------- training


class Networks(nn.Module):
    """A backbone with its two heads: the student, or the teacher."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__()
        hidden, K = config.head_hidden_dim, config.num_prototypes
        self.backbone = VisionTransformer(config)
        self.dino_head = ProjectionHead(config.width, hidden, config.dino_bottleneck_dim, K)
        self.ibot_head = ProjectionHead(config.width, hidden, config.ibot_bottleneck_dim, K)


class PlainDinoV2:
    """Student, teacher and optimizer.

    precision       "fp32", or "bf16" for autocast over fp32 weights
    compile_blocks  torch.compile of each transformer block, as DINOv3 trains
    """

    def __init__(
        self,
        config: PlainConfig,
        precision: str,
        seed: int = 0,
        device: torch.device | str = "cpu",
        compile_blocks: bool = False,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise ValueError(f"precision must be fp32 or bf16, got {precision!r}")
        self.config = config
        self.precision = precision
        torch.manual_seed(seed)
        self.device = torch.device(device)
        self.student = Networks(config).train().to(self.device)
        self.teacher = Networks(config).eval().requires_grad_(False).to(self.device)
        self.teacher.load_state_dict(self.student.state_dict())
        if compile_blocks:
            for block in [*self.student.backbone.blocks, *self.teacher.backbone.blocks]:
                block.compile()
        self.optimizer = torch.optim.AdamW(self.parameter_groups(), lr=config.lr, fused=True)

    def parameter_groups(self) -> list[dict[str, object]]:
        """No decay on biases, norms and LayerScale; patch embedding at a fifth of the rate; last layers apart."""
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.student.named_parameters():
            lr_factor = self.config.patch_embed_lr_factor if "patch_embed" in name else 1.0
            decays = not (name.endswith("bias") or "norm" in name or "gamma" in name)
            groups.setdefault((lr_factor, float(decays), "last_layer" in name), []).append(parameter)
        return [
            {"params": parameters, "lr": self.config.lr * lr_factor, "weight_decay": self.config.weight_decay * decay}
            for (lr_factor, decay, _), parameters in groups.items()
        ]

    @torch.no_grad()
    def targets(self, global_crops: Tensor, masked_M: Tensor) -> tuple[Tensor, Tensor]:
        """Targets for the CLS tokens [2B, K], in the order of the student's crops, and for the masked tokens [M, K]."""
        config = self.config
        cls_RD, patch_RND = self.teacher.backbone(global_crops)
        # Each global crop of the student is compared with the other one of the teacher.
        swapped_RD = torch.cat(cls_RD.chunk(2)[::-1])
        dino = sinkhorn_knopp(
            self.teacher.dino_head(swapped_RD), config.teacher_temperature, config.sinkhorn_iterations
        )
        ibot_logits_MK = self.teacher.ibot_head(patch_RND.flatten(0, 1)[masked_M])
        ibot = sinkhorn_knopp(ibot_logits_MK, config.teacher_temperature, config.sinkhorn_iterations)
        return dino, ibot

    def losses(self, global_crops: Tensor, local_crops: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """global_crops [2B, 3, S, S] and local_crops [VB, 3, s, s], crop-major; mask bool [2B, N] of the global crops.

        Returns the terms of the objective, weighted: their sum is the loss.
        """
        config = self.config
        num_images = len(global_crops) // 2
        num_local = len(local_crops) // num_images
        num_pairs = 2 + 2 * num_local
        masked_M = mask.flatten().nonzero().squeeze(1)
        weights_M = (1 / mask.sum(dim=1).clamp(min=1)).repeat_interleave(mask.sum(dim=1))

        dino_targets, ibot_targets_MK = self.targets(global_crops, masked_M)

        global_cls, global_patches = self.student.backbone(global_crops, mask)
        local_cls, _ = self.student.backbone(local_crops)
        cls_logits = self.student.dino_head(torch.cat([global_cls, local_cls]))
        global_logits, local_logits = cls_logits.split([len(global_crops), len(local_crops)])
        ibot_logits_MK = self.student.ibot_head(global_patches.flatten(0, 1)[masked_M])

        temperature = config.student_temperature
        local_term = dino_loss(local_logits.chunk(num_local), dino_targets.chunk(2), temperature) / num_pairs
        # Twice the mean over all 2B rows: the sum over the two pairs of different global crops.
        global_term = 2 * dino_loss([global_logits], [dino_targets], temperature) / num_pairs
        ibot_term = ibot_loss(ibot_logits_MK, ibot_targets_MK, weights_M, len(global_crops), temperature)
        koleo_term = torch.stack([koleo_loss(view) for view in global_cls.chunk(2)]).sum() * config.koleo_weight
        return {"dino_local": local_term, "dino_global": global_term, "ibot": ibot_term, "koleo": koleo_term}

    def forward_and_backward(self, global_crops: Tensor, local_crops: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Leaves gradients in the student's parameters; returns the detached terms of the loss."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.losses(global_crops, local_crops, mask)
        torch.stack(list(terms.values())).sum().backward()
        return {name: term.detach() for name, term in terms.items()}

    def training_step(self, global_crops: Tensor, local_crops: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """One whole step: forward, backward, clipping, AdamW, EMA. Returns the detached terms of the loss."""
        terms = self.forward_and_backward(global_crops, local_crops, mask)
        with record_function("clip_grad_norm"):
            for module in self.student.children():
                nn.utils.clip_grad_norm_(module.parameters(), self.config.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            weight = 1 - self.config.ema_momentum
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), weight)
        return terms
