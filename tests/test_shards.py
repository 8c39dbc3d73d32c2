import copy

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from tests.engine.rank_processes import run_ranks
from webssl_fast.methods.ema import ema_update
from webssl_fast.shards import first_element, local_shard, num_copies

MESHES = {(4,): [Shard(0)], (2, 2): [Replicate(), Shard(0)]}


def shards_of_rank(distributed):
    """For meshes of one and of two axes and rows that do not divide: (begins as said, copies, elements held)."""
    found = []
    for shape, placements in MESHES.items():
        mesh = init_device_mesh("cpu", shape)
        for num_rows in (8, 5, 3, 1):
            whole = torch.arange(num_rows * 6).view(num_rows, 2, 3)
            tensor = distribute_tensor(whole, mesh, placements, src_data_rank=None)
            held = local_shard(tensor).flatten()
            # Only ranks that hold something ask: were the answer to need the others, this would hang.
            begins = not len(held) or held[0].item() == first_element(tensor)
            found.append((begins, num_copies(tensor), len(held)))
    return found


def test_a_shard_knows_where_it_begins_and_how_often_it_exists():
    ranks = run_ranks(4, shards_of_rank)
    assert all(begins for rank in ranks for begins, _, _ in rank)
    assert [copies for _, copies, _ in ranks[0]] == [1] * 4 + [2] * 4
    for i, num_rows in enumerate((8, 5, 3, 1) * 2):
        assert sum(rank[i][2] for rank in ranks) == num_rows * 6 * ranks[0][i][1]


def average_of_rank(distributed, average, source):
    """A bf16 average after three sharded updates, whole."""
    for module in (average, source):
        fully_shard(module, mesh=init_device_mesh("cpu", (distributed.world_size,)))
    for step in range(3):
        ema_update(average, source, 0.99, seed=0, step=step)
    return average.weight.detach().full_tensor().float().numpy()


def test_a_sharded_bf16_average_rounds_as_the_whole_does():
    torch.manual_seed(0)
    average, source = nn.Linear(31, 17).bfloat16(), nn.Linear(31, 17)
    whole = copy.deepcopy(average)
    for step in range(3):
        ema_update(whole, source, 0.99, seed=0, step=step)
    for found in run_ranks(4, average_of_rank, average, source):
        assert (found == whole.weight.detach().float().numpy()).all()


def test_a_plain_tensor_is_its_only_shard():
    x = torch.randn(3, 2, requires_grad=True)
    assert local_shard(x).data_ptr() == x.data_ptr() and not local_shard(x).requires_grad
    assert (first_element(x), num_copies(x)) == (0, 1)
