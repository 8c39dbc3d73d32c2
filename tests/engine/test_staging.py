import pytest
import torch

from webssl_fast.engine.staging import Staging

CPU = torch.device("cpu")


def make_tensors():
    return {
        "matrix": torch.randn(5, 3),
        "half": torch.randn(4).bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "part": torch.arange(10.0)[3:5],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def test_copy_keeps_what_training_changes_afterwards():
    tensors = make_tensors()
    before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    copy = Staging(CPU).copy(tensors)
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(1)
    for name, expected in before.items():
        assert torch.equal(copy[name], expected) and copy[name].dtype == expected.dtype, name


def test_memory_of_a_copy_is_used_again():
    staging, tensors = Staging(CPU), make_tensors()
    places = {name: tensor.data_ptr() for name, tensor in staging.copy(tensors).items()}
    with torch.no_grad():
        tensors["matrix"].fill_(3)
    again = staging.copy(tensors)
    assert {name: tensor.data_ptr() for name, tensor in again.items()} == places
    assert torch.equal(again["matrix"], torch.full((5, 3), 3.0))


@pytest.mark.gpu
def test_copy_beside_a_gpu_is_page_locked_and_complete():
    tensors = {"large": torch.randn(2000, 3000, device="cuda"), "count": torch.tensor(7, device="cuda")}
    staging = Staging(torch.device("cuda"))
    for _ in range(2):
        tensors["large"].add_(1)
        copy = staging.copy(tensors)
        assert copy["large"].is_pinned()
        assert torch.equal(copy["large"], tensors["large"].cpu()) and int(copy["count"]) == 7
