import pytest
import torch
import torch.distributed as dist

from webssl_fast.engine.distributed import num_cores, start
from webssl_fast.errors import UserError


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_group(alone):
    with start("cpu", num_threads=1) as distributed:
        assert (distributed.rank, distributed.world_size, distributed.is_main) == (0, 1, True)
        assert not dist.is_initialized()
        distributed.barrier()
        assert distributed.gather("x") == ["x"]
        assert distributed.sum_(torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("asked, ranks_on_host, expected", [(3, 1, 3), (0, 1, num_cores()), (0, 10**6, 1)])
def test_threads_are_those_asked_for_or_a_share_of_the_cores(alone, monkeypatch, asked, ranks_on_host, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_on_host))
    with start("cpu", num_threads=asked):
        assert torch.get_num_threads() == expected


def test_missing_gpu_is_an_error(alone, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; set train.device=cpu or auto"), start("cuda"):
        pass
    with start("auto") as distributed:
        assert distributed.device == torch.device("cpu")


def test_more_ranks_than_gpus_is_an_error(alone, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes on a host with 2 GPUs"), start("auto"):
        pass
