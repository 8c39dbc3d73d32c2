import numpy as np
import torch

from webssl_fast.rounding import rounding_key, stochastic_bf16

KEY = rounding_key(0, "test", 0, "weight")


def test_the_mean_is_right_and_only_neighbours_occur():
    values = torch.tensor([1.001, -1.001, 3.1415927, -2.5e-7, 1e-40, 250.3])
    rounded = stochastic_bf16(values.repeat_interleave(100_000), KEY, 0).view(len(values), -1)
    for value, samples in zip(values.tolist(), rounded, strict=True):
        found = samples.double().unique().numpy()
        assert len(found) == 2 and found[0] < value < found[1]
        # A share p of 100,000 draws strays by more than 5 standard deviations about once in two million.
        share = (value - found[0]) / (found[1] - found[0])
        error = abs(samples.double().mean().item() - value) / (found[1] - found[0])
        assert error < 5 * np.sqrt(share * (1 - share) / 100_000)


def test_what_bf16_can_hold_stays():
    values = torch.randn(1000).bfloat16().float()
    values[:4] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf])
    assert torch.equal(stochastic_bf16(values, KEY, 0).float(), values)
    assert stochastic_bf16(torch.tensor([torch.nan]), KEY, 0).isnan().all()


def test_shards_round_as_the_whole_does():
    values = torch.randn(1000)
    whole = stochastic_bf16(values, KEY, 7)
    parts = [stochastic_bf16(values[:300], KEY, 7), stochastic_bf16(values[300:], KEY, 307)]
    assert torch.equal(torch.cat(parts), whole)


def test_steps_purposes_and_names_round_differently():
    values = torch.full((1000,), 1.0 + 2**-8)
    ups = [
        stochastic_bf16(values, rounding_key(0, purpose, step, name), 0).float() > 1
        for purpose, step, name in (("a", 0, "x"), ("a", 1, "x"), ("b", 0, "x"), ("a", 0, "y"))
    ]
    for i, first in enumerate(ups):
        for second in ups[:i]:
            # Half a unit in the last place: each goes up with probability 1/2, and two agree half of the time.
            assert abs((first == second).float().mean().item() - 0.5) < 0.08
