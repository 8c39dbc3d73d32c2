import pytest
import torch

from tests.cuda_on_host import cuda_on_host, thread_order  # noqa: F401  fixtures


@pytest.fixture
def one_thread():
    """Toy tensors gain nothing from a second thread, and lose much where other processes are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
