import pytest
import torch

from webssl_fast.methods.losses import feature_distance, koleo, masked_pixel_loss


def test_koleo_matches_the_formula():
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    expected = 0.0
    for group in torch.nn.functional.normalize(x.double(), dim=-1):
        for i in range(5):
            distances = torch.stack([(group[i] - group[j]).norm() for j in range(5) if j != i])
            expected = expected - torch.log(distances.min()) / 10
    loss = koleo(x)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_koleo_is_finite_for_equal_rows_in_low_precision(dtype):
    x = torch.ones(1, 4, 8, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = koleo(x)
    assert loss.dtype == torch.float32 and loss.isfinite()


def test_koleo_rejects_single_images():
    with pytest.raises(ValueError, match="at least 2"):
        koleo(torch.ones(3, 1, 8))


@pytest.mark.parametrize("normalize", [True, False])
def test_masked_pixel_loss_matches_the_formula(normalize):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(5, 12, generator=generator, requires_grad=True)
    pixels = torch.rand(5, 12, generator=generator) * 3 + 100  # far from 0, where fp32 has few digits left
    pixels[4] = 7.0  # without variance
    expected = 0.0
    for row, target in zip(prediction.double(), pixels.double(), strict=True):
        if normalize:
            deviation = target - target.sum() / 12
            target = deviation / (deviation.square().sum() / 11 + 1e-6).sqrt()
        expected = expected + (row - target).square().sum() / 60
    loss = masked_pixel_loss(prediction, pixels, normalize=normalize)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,), (expected_grad,) = (torch.autograd.grad(x, prediction) for x in (loss, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert masked_pixel_loss(prediction, pixels, normalize=normalize) == loss


@pytest.mark.parametrize("kind", ["l2", "smooth_l1"])
def test_feature_distance_matches_the_formula(kind):
    generator = torch.Generator().manual_seed(0)
    prediction = (torch.randn(5, 12, generator=generator) * 2).requires_grad_()
    target = torch.randn(5, 12, generator=generator)
    expected = 0.0
    for difference in (prediction.double() - target.double()).flatten():
        size = difference.abs()
        smooth = size**2 / 2 if size < 1 else size - 0.5
        expected = expected + (smooth if kind == "smooth_l1" else size**2) / 60
    loss = feature_distance(prediction, target, kind)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (grad,), (expected_grad,) = (torch.autograd.grad(x, prediction) for x in (loss, expected))
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert feature_distance(prediction, target, kind) == loss
