import os

import pytest

# As the command line does, and before torch loads its OpenMP: on cores that are busy otherwise, threads that spin while
# they wait make a training step take several times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402

from tests.cuda_on_host import cuda_on_host, thread_order  # noqa: E402, F401  fixtures


@pytest.fixture
def one_thread():
    """Toy tensors gain nothing from a second thread, and lose much where other processes are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
