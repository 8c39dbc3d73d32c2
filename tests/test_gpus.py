import pytest

from webssl_fast.gpus import GPUS, gpu_of_device


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_devices_are_found_by_their_names(device_name, name):
    assert gpu_of_device(device_name) is GPUS[name]


def test_other_devices_are_not_guessed():
    assert gpu_of_device("Tesla T4") is None


def test_memory_is_the_data_sheets():
    assert GPUS["h100"].memory_bytes == 80e9 and GPUS["h200"].peak_tflops == 989.4
