import logging

import pytest

from webssl_fast.config.resolve import resolve
from webssl_fast.config.schema import RunConfig
from webssl_fast.engine.distributed import Distributed
from webssl_fast.recipes.pretrain import _warn_of_accumulation


@pytest.mark.parametrize(("micro_batch_size", "world_size", "num_passes"), [(8, 4, 1), (8, 2, 2), (2, 4, 4)])
def test_accumulation_says_what_it_changes(caplog, micro_batch_size, world_size, num_passes):
    config = RunConfig.model_validate(
        {"train": {"global_batch_size": 32, "micro_batch_size": micro_batch_size, "group_size": 2}}
    )
    config = resolve(config, world_size=world_size, device="cpu")
    with caplog.at_level(logging.WARNING):
        _warn_of_accumulation(config, Distributed(device=None, world_size=world_size))  # type: ignore[arg-type]
    if num_passes == 1:
        assert not caplog.text
    else:
        images = 32 // num_passes
        assert f"a step is {num_passes} passes of {images} images. Sinkhorn-Knopp balances" in caplog.text
