import sys
import types

import numpy as np
import pytest
import torch

from tests.engine.toy_method import ToyLoader, ToyMethod
from webssl_fast.config.schema import OptimConfig
from webssl_fast.engine.apex import ApexAdamW
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.optimizer import Optimizer
from webssl_fast.errors import UserError

CPU = Distributed(torch.device("cpu"))
NUM_STEPS = 12


def make(**settings):
    method = ToyMethod(num_steps=NUM_STEPS)
    method.initialize(0)
    config = OptimConfig(**{"base_lr": 0.02, "warmup_steps": 3, "clip_grad_norm": 1.0, **settings})
    return method, Optimizer(method, config, CPU, num_steps=NUM_STEPS, global_batch_size=256), config


def loss_of(method, step):
    return method.training_step(ToyLoader(4, 1).batch(step, 0), step)[0]


def snapshot(method, optimizer):
    names = {p: n for n, p in method.named_parameters()}
    tensors = {**method.state_dict(), **optimizer.state_tensors(names)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def test_matches_adamw_written_from_its_formulas():
    method, optimizer, config = make()
    names = {p: n for n, p in method.named_parameters()}
    factors = {  # name: lr factor, weight decay factor, first step with a learning rate
        names[p]: (g.lr_factor, g.weight_decay_factor, g.scheduled_lr_off_steps)
        for g in method.parameter_groups()
        for p in g.parameters
    }
    weights = {n: p.detach().double().numpy().copy() for p, n in names.items() if n in factors}
    m = {n: np.zeros_like(w) for n, w in weights.items()}
    v = {n: np.zeros_like(w) for n, w in weights.items()}
    clipped = 0
    for step in range(NUM_STEPS):
        loss = loss_of(method, step)
        loss.backward()
        grads = {n: p.grad.double().numpy().copy() for p, n in names.items() if n in factors}
        outcome = optimizer.step(step, loss)
        peak = config.base_lr / 2  # sqrt(256 / 1024)
        progress = (step - 3) / (NUM_STEPS - 3)
        falling = 1e-6 + (peak - 1e-6) * (1 + np.cos(np.pi * progress)) / 2
        lr = peak * step / 3 if step < 3 else falling
        decay = 0.2 + (0.04 - 0.2) * (1 + np.cos(np.pi * step / NUM_STEPS)) / 2
        for module in ("backbone", "head"):
            members = [n for n in weights if n.startswith(f"student.{module}.")]
            norm = np.sqrt(sum((grads[n] ** 2).sum() for n in members))
            assert outcome.grad_norms[module].item() == pytest.approx(norm, rel=1e-5)
            clipped += norm > 1.0
            for n in members:
                lr_factor, decay_factor, off_steps = factors[n]
                rate = lr * lr_factor if step >= off_steps else 0.0
                g = grads[n] * min(1.0, 1.0 / (norm + 1e-6))
                m[n] = 0.9 * m[n] + 0.1 * g
                v[n] = 0.999 * v[n] + 0.001 * g * g
                m_hat, v_hat = m[n] / (1 - 0.9 ** (step + 1)), v[n] / (1 - 0.999 ** (step + 1))
                weights[n] -= rate * decay * decay_factor * weights[n] + rate * m_hat / (np.sqrt(v_hat) + 1e-8)
        assert outcome.found_inf.item() == 0
        assert all(p.grad is None for p in method.parameters())
    assert 0 < clipped < 2 * NUM_STEPS  # both cases were met
    for parameter, n in names.items():
        if n in weights:
            np.testing.assert_allclose(parameter.detach().numpy(), weights[n], rtol=2e-5, atol=2e-6, err_msg=n)


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_step_changes_nothing(where, value):
    method, optimizer, _ = make(clip_grad_norm=3.0)
    for step in range(4):
        loss = loss_of(method, step)
        loss.backward()
        optimizer.step(step, loss)
    before = snapshot(method, optimizer)
    loss = loss_of(method, 4)
    loss.backward()
    if where == "loss":
        loss = loss.detach() * value
    else:
        method.student["head"][1].bias.grad[0] = value
    assert optimizer.step(4, loss).found_inf.item() == 1
    for name, tensor in snapshot(method, optimizer).items():
        assert torch.equal(tensor, before[name]), name
    assert before["student.head.1.bias.step"].item() == 4


def test_learning_rate_is_off_before_its_step():
    method, optimizer, _ = make(warmup_steps=0)
    for step in range(3):
        before = method.student["head"][1].weight.detach().clone()
        loss = loss_of(method, step)
        loss.backward()
        optimizer.step(step, loss)
        assert torch.equal(before, method.student["head"][1].weight) == (step < 2)


def test_parameters_outside_the_groups_are_an_error():
    method = ToyMethod()
    groups = method.parameter_groups()
    method.parameter_groups = lambda: groups[:-1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"only one of them holds student\.head\.0\.bias"):
        Optimizer(method, OptimConfig(), CPU, num_steps=1, global_batch_size=8)


def test_parameter_in_two_groups_is_an_error():
    method = ToyMethod()
    groups = method.parameter_groups()
    method.parameter_groups = lambda: [*groups, groups[0]]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="names a parameter twice, again in 'backbone'"):
        Optimizer(method, OptimConfig(), CPU, num_steps=1, global_batch_size=8)


@pytest.mark.parametrize("installed", [None, types.ModuleType("apex")], ids=["missing", "the other project"])
def test_missing_apex_says_which_package_is_meant(monkeypatch, installed):
    monkeypatch.setitem(sys.modules, "apex", installed)
    monkeypatch.delitem(sys.modules, "apex.optimizers", raising=False)
    with pytest.raises(UserError, match=r"`apex` on PyPI is another project.*github\.com/NVIDIA/apex"):
        make(implementation="apex")


class FusedAdamStandIn(torch.optim.Optimizer):
    """Apex's capturable FusedAdam in plain torch: one count a group, a tensor as lr, asked-for skip flag and scale."""

    def __init__(self, params, lr, betas, eps, adam_w_mode, capturable):
        assert adam_w_mode and capturable
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        for group in self.param_groups:
            group["lr"] = torch.tensor(group["lr"])
        self._dummy_overflow_buf = torch.zeros(1, dtype=torch.int)

    def step(self, closure=None, grad_scaler=None):
        for group in self.param_groups:
            group["step"] += (self._dummy_overflow_buf != 1).to(torch.int)
            device = group["params"][0].device
            self._dummy_overflow_buf.copy_(grad_scaler._check_inf_per_device(self)[device])
            assert grad_scaler._get_scale_async().item() == 1
            if self._dummy_overflow_buf.item():
                continue
            (beta1, beta2), count = group["betas"], group["step"].item()
            for p in group["params"]:
                state = self.state[p]
                state["exp_avg"].lerp_(p.grad, 1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                denominator = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt() + group["eps"]
                update = state["exp_avg"] / (1 - beta1**count) / denominator + group["weight_decay"] * p
                p -= group["lr"] * update


def test_apex_takes_the_steps_of_torch(monkeypatch):
    apex = types.ModuleType("apex")
    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedAdam = FusedAdamStandIn
    monkeypatch.setitem(sys.modules, "apex", apex)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    ours, torchs = [t.clone() for t in start], [t.clone() for t in start]
    apex_adamw = ApexAdamW([{"params": [p]} for p in ours], (0.9, 0.99), 1e-8, torch.device("cuda"))
    torch_adamw = torch.optim.AdamW([{"params": [p]} for p in torchs], betas=(0.9, 0.99), fused=True)
    for step, found_inf in enumerate([0.0, 0.0, 1.0, 0.0]):
        for optimizer, parameters in ((apex_adamw, ours), (torch_adamw, torchs)):
            generator.manual_seed(step)
            optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(found_inf)
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = 0.01 * (step + 1), 0.1
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=generator)
                if not optimizer.state[p]:
                    optimizer.state[p] = {"step": torch.zeros(())} | {
                        key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")
                    }
            optimizer.step()
    for mine, other in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, other)
        assert apex_adamw.state[mine]["step"] == torch_adamw.state[other]["step"] == 3
