import pytest
import torch
import torch.distributed as dist

from webssl_fast.engine import distributed
from webssl_fast.engine.distributed import num_cores, start
from webssl_fast.errors import UserError


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_needs_no_group(alone):
    with start("cpu", num_threads=1) as ranks:
        assert (ranks.rank, ranks.world_size, ranks.is_main) == (0, 1, True)
        assert not dist.is_initialized()
        ranks.barrier()
        assert ranks.gather("x") == ["x"]
        assert ranks.sum_(torch.ones(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("asked, ranks_on_host, expected", [(3, 1, 3), (0, 1, num_cores()), (0, 10**6, 1)])
def test_threads_are_those_asked_for_or_a_share_of_the_cores(alone, monkeypatch, asked, ranks_on_host, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks_on_host))
    with start("cpu", num_threads=asked):
        assert torch.get_num_threads() == expected


def test_missing_gpu_is_an_error(alone, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; set train.device=cpu or auto"), start("cuda"):
        pass
    with start("auto") as ranks:
        assert ranks.device == torch.device("cpu")


def test_more_ranks_than_gpus_is_an_error(alone, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="3 processes on a host with 2 GPUs"), start("auto"):
        pass


@pytest.mark.parametrize("num_hosts, says", [("1", ""), ("2", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1")])
def test_restarted_ranks_do_not_meet_their_former_lives(monkeypatch, caplog, num_hosts, says):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(server.port),
        "RANK": "0",
        "GROUP_WORLD_SIZE": num_hosts,
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_MAX_RESTARTS": "3",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    stores = []
    for life in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(life))
        stores.append(distributed._store_of_this_life())
    if num_hosts == "1":
        stores[0].set("address", "of the first life")
        assert stores[0].check(["address"]) and not stores[1].check(["address"])
    else:
        assert stores == [None, None]
    assert ("RESTARTS MAY FAIL" in caplog.text) is bool(says) and says in caplog.text


def test_store_is_torch_s_own_where_torchrun_does_not_restart(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert distributed._store_of_this_life() is None
