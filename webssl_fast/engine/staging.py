"""A copy of a run's tensors in host memory, to be written while training changes the tensors themselves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions


class Staging:
    """Host memory for one copy of this rank's shards; page-locked beside a GPU, kept and used for every copy."""

    def __init__(self, device: torch.device):
        on_gpu = device.type == "cuda"
        options = StagingOptions(
            use_pinned_memory=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
            use_non_blocking_copy=on_gpu,
        )
        self._stager = DefaultStager(options)

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, on the host, sharded as they were; the previous copy is overwritten.

        Waits until they have been copied: the next step would change what is still to be read.
        """
        return self._stager.stage(dict(tensors))  # type: ignore[return-value]

    def close(self) -> None:
        self._stager.close()
