"""The 52 heads of a linear probe in one, against 52 modules and against 52 probes that each compute their features.

    python -m benchmarks.bench_linear_probe --threads 2

Two cases, rivals taking turns, one JSON line each; both check first that the rivals compute the same.
  linear_probe_heads   one step of all heads on features that are there, at --width and --classes. Rivals: `modules`, a
                       loop over 52 nn.Linear with an SGD each; `one_optimizer`, the same under one SGD and one backward
                       pass; `batched`, one parameter [heads, classes, width] for each choice of features, by autograd
  linear_probe_step    a whole step, images in; the rival encodes the same images anew for each of the 52 heads
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import argument_parser, emit, time_interleaved
from webssl_fast.config.schema import LinearProbeConfig, ModelConfig
from webssl_fast.evals.linear_probe import joined_features, probe_blocks, variants
from webssl_fast.evals.probe_heads import ProbeHeads, head_name
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.vit import VisionTransformer

CONFIG = LinearProbeConfig()
LR_FACTOR = 0.5
TOLERANCE = 1e-4  # of the largest change of a weight: sums in another order


class ModuleHeads:
    """The same heads as modules and optimizers of torch, each by itself or under one optimizer."""

    def __init__(self, heads: ProbeHeads, width: int, num_classes: int, device: str):
        self.modules: list[tuple[slice, nn.Linear, torch.optim.SGD]] = []
        state = heads.state()
        for variant in variants(CONFIG):
            columns = variant.columns(width)
            for rate in CONFIG.learning_rates:
                module = nn.Linear(columns.stop - columns.start, num_classes, device=device)
                name = head_name(variant, rate)
                module.load_state_dict({part: state[f"{name}.{part}"] for part in ("weight", "bias")})
                optimizer = torch.optim.SGD(module.parameters(), lr=rate * LR_FACTOR, momentum=CONFIG.momentum)
                self.modules.append((columns, module, optimizer))
        groups = [{"params": module.parameters(), "lr": sgd.defaults["lr"]} for _, module, sgd in self.modules]
        self.together = torch.optim.SGD(groups, momentum=CONFIG.momentum)

    def step(self, features_BF: Tensor, labels_B: Tensor) -> None:
        for head in range(len(self.modules)):
            self.step_of(head, features_BF, labels_B)

    def step_of(self, head: int, features_BF: Tensor, labels_B: Tensor) -> None:
        columns, module, optimizer = self.modules[head]
        F.cross_entropy(module(features_BF[:, columns]), labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()

    def step_together(self, features_BF: Tensor, labels_B: Tensor) -> None:
        losses = [F.cross_entropy(module(features_BF[:, columns]), labels_B) for columns, module, _ in self.modules]
        torch.stack(losses).sum().backward()
        self.together.step()
        self.together.zero_grad()


class BatchedHeads:
    """All learning rates of a choice of features as one parameter, what one would write first."""

    def __init__(self, width: int, num_classes: int, device: str):
        self.parameters = []
        rates = torch.tensor(CONFIG.learning_rates, device=device) * LR_FACTOR
        self.rates, self.columns = rates, [variant.columns(width) for variant in variants(CONFIG)]
        for columns in self.columns:
            shape = (len(rates) * num_classes, columns.stop - columns.start)
            weight = torch.empty(shape, device=device).normal_(0, 0.01).requires_grad_()
            self.parameters.append((weight, torch.zeros(shape[0], device=device, requires_grad=True)))
        self.momenta = [[torch.zeros_like(p) for p in pair] for pair in self.parameters]

    def step(self, features_BF: Tensor, labels_B: Tensor) -> None:
        R = len(self.rates)
        for columns, pair, momenta in zip(self.columns, self.parameters, self.momenta, strict=True):
            logits_BRC = F.linear(features_BF[:, columns], *pair).view(len(labels_B), R, -1)
            labels_BR = labels_B[:, None].expand(-1, R)
            F.cross_entropy(logits_BRC.flatten(0, 1), labels_BR.flatten(), reduction="sum").div(
                len(labels_B)
            ).backward()
            with torch.no_grad():
                for parameter, momentum in zip(pair, momenta, strict=True):
                    assert parameter.grad is not None
                    momentum.mul_(CONFIG.momentum).add_(parameter.grad)
                    rates = self.rates.view(R, *[1] * parameter.dim())
                    parameter.view(R, -1, *parameter.shape[1:]).addcmul_(
                        momentum.view(R, -1, *parameter.shape[1:]), rates, value=-1.0
                    )
                    parameter.grad = None


def make_heads(width: int, num_classes: int, device: str) -> ProbeHeads:
    return ProbeHeads(
        variants(CONFIG), CONFIG.learning_rates, width=width, num_classes=num_classes, seed=0, device=device
    )


def check(heads: ProbeHeads, modules: ModuleHeads, before: dict[str, Tensor]) -> None:
    """Both have taken the same step: weights must agree to TOLERANCE of how far the farthest head's moved."""
    state = heads.state()
    names = (head_name(variant, rate) for variant in variants(CONFIG) for rate in CONFIG.learning_rates)
    for name, (_, module, _) in zip(names, modules.modules, strict=True):
        weight = state[f"{name}.weight"]
        moved = (weight - before[name]).abs().max()
        apart = (weight - module.weight).abs().max()
        if apart > TOLERANCE * moved + 2e-9:
            raise SystemExit(f"{name}: weights differ by {apart:.2e} after a step that moved them by {moved:.2e}")


def heads_case(arguments: argparse.Namespace) -> None:
    width, num_classes, batch, device = arguments.width, arguments.classes, arguments.batch, arguments.device
    features_BF = torch.randn(batch, (1 + max(CONFIG.num_blocks)) * width, device=device)
    labels_B = torch.randint(num_classes, (batch,), device=device)
    heads = make_heads(width, num_classes, device)
    modules = ModuleHeads(heads, width, num_classes, device)
    before = {name.removesuffix(".weight"): w.clone() for name, w in heads.state().items() if name.endswith(".weight")}

    def ours() -> None:
        heads.step(features_BF, labels_B, lr_factor=LR_FACTOR, momentum=CONFIG.momentum)

    ours()
    modules.step(features_BF, labels_B)
    check(heads, modules, before)
    del before
    batched = BatchedHeads(width, num_classes, device)
    rivals: dict[str, Callable[[], None]] = {
        "ours": ours,
        "modules": lambda: modules.step(features_BF, labels_B),
        "one_optimizer": lambda: modules.step_together(features_BF, labels_B),
        "batched": lambda: batched.step(features_BF, labels_B),
    }
    report("linear_probe_heads", rivals, arguments, width=width)


def step_case(arguments: argparse.Namespace) -> None:
    device, num_classes, batch = arguments.device, arguments.classes, arguments.step_batch
    backbone = VisionTransformer(ModelConfig(preset=arguments.preset, image_size_px=arguments.image_size))
    backbone.initialize(0, "backbone")
    encoder = BackboneEncoder(backbone.to(device), arguments.preset).eval().requires_grad_(False)
    blocks = probe_blocks(CONFIG, encoder.num_blocks)
    images = torch.randn(batch, 3, arguments.image_size, arguments.image_size, device=device)
    labels_B = torch.randint(num_classes, (batch,), device=device)
    heads = make_heads(encoder.width, num_classes, device)
    modules = ModuleHeads(heads, encoder.width, num_classes, device)
    before = {name.removesuffix(".weight"): w.clone() for name, w in heads.state().items() if name.endswith(".weight")}

    def encode() -> Tensor:
        with torch.no_grad():
            return joined_features(encoder.block_features(images, blocks))

    def together() -> None:
        heads.step(encode(), labels_B, lr_factor=LR_FACTOR, momentum=CONFIG.momentum)

    def apart() -> None:
        for head in range(len(modules.modules)):
            modules.step_of(head, encode(), labels_B)

    together()
    apart()
    check(heads, modules, before)
    rivals = {"ours": together, "separate_probes": apart}
    report("linear_probe_step", rivals, arguments, preset=arguments.preset, image_px=arguments.image_size)


def report(case: str, rivals: dict[str, Callable[[], None]], arguments: argparse.Namespace, **fields: object) -> None:
    timings = time_interleaved(rivals, arguments.repeats, device=arguments.device)
    ours = timings["ours"]
    emit(
        case,
        record=arguments.record,
        device=arguments.device,
        **fields,
        classes=arguments.classes,
        batch=arguments.batch if case == "linear_probe_heads" else arguments.step_batch,
        heads=len(variants(CONFIG)) * len(CONFIG.learning_rates),
        threads=torch.get_num_threads(),
        repeats=arguments.repeats,
        **{f"{name}_ms": timing.p50_ms for name, timing in timings.items()},
        **{f"{name}_cpu_ms": timing.cpu_ms for name, timing in timings.items()},
        **{f"{name}_over_ours": t.p50_ms / ours.p50_ms for name, t in timings.items() if name != "ours"},
        **{f"{name}_over_ours_cpu": t.cpu_ms / ours.cpu_ms for name, t in timings.items() if name != "ours"},
    )


def main() -> None:
    parser = argument_parser(__doc__, repeats=7)
    parser.add_argument("--case", choices=["heads", "step"], help="default: both")
    parser.add_argument("--width", type=int, default=1024, help="of the heads' class token (default: 1024)")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=128, help="images of the heads' step (default: 128)")
    parser.add_argument("--preset", default="vit_small_patch14", help="encoder of the whole step")
    parser.add_argument("--image-size", type=int, default=224, help="in pixels")
    parser.add_argument("--step-batch", type=int, default=8, help="images of the whole step (default: 8)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.case != "step":
        heads_case(arguments)
    if arguments.case != "heads":
        step_case(arguments)


if __name__ == "__main__":
    main()
