"""Named tensors to and from a folder of safetensors files, by torch.distributed.checkpoint.

Sharded tensors are written by the ranks that hold them, and read by any number of ranks. Nothing is ever unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from webssl_fast.engine.distributed import Distributed
from webssl_fast.errors import UserError

# A file is put together in host memory before it is written.
_FILE_BYTES = 1 << 30


class TensorMismatch(UserError):
    """The tensors on disk are not those of this model."""


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], distributed: Distributed) -> None:
    """Writes `tensors` (any dtype and shape, sharded ones too) into `folder`, and waits until they are on the disk.

    Every rank calls this. Raises OSError on every rank if one of them could not write.
    """
    single = distributed.world_size == 1
    writer = HuggingFaceStorageWriter(
        str(folder), fqn_to_index_mapping=_file_indices(tensors, distributed.world_size), save_distributed=True
    )
    try:
        _accept_one_process()
        packed = {name: tensor.contiguous() for name, tensor in tensors.items()}  # safetensors takes no other
        dcp.save(packed, storage_writer=writer, process_group=distributed.group, no_dist=single)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((cause for cause in causes if isinstance(cause, OSError)), causes[0]) from error


def files_of_rank(folder: Path, rank: int) -> list[Path]:
    """The files that `rank` wrote into `folder`."""
    return sorted(folder.glob(f"shard-{rank + 1:05d}-*.safetensors"))


def read_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    distributed: Distributed,
    *,
    prefix: str = "",
    any_float: bool = False,
) -> None:
    """Reads the tensors under `prefix` of `folder` into `tensors`, in place; they may be sharded in another way.

    any_float  takes floats of another precision too, rounded to nearest; otherwise dtypes must be equal

    Every rank calls this. Raises TensorMismatch, before anything is read, if names, shapes or dtypes differ.
    """
    reader = HuggingFaceStorageReader(str(folder))
    stored = {n: m for n, m in reader.read_metadata().state_dict_metadata.items() if n.startswith(prefix)}
    mismatches = [f"{name} is missing in the checkpoint" for name in tensors if name not in stored]
    mismatches += [f"{name} is in the checkpoint only" for name in stored if name not in tensors]
    for name, tensor in tensors.items():
        if name in stored:
            stored_dtype = stored[name].properties.dtype
            there, here = _describe(stored[name].size, stored_dtype), _describe(*_form(tensor))
            floats = stored_dtype.is_floating_point and tensor.is_floating_point()
            same = stored[name].size == tensor.shape if any_float and floats else there == here
            if not same:
                mismatches.append(f"{name} is {there} in the checkpoint and {here} in this model")
    if mismatches:
        more = f"; and {len(mismatches) - 5} more" if len(mismatches) > 5 else ""
        raise TensorMismatch(
            f"the checkpoint {folder} is of another architecture: {'; '.join(mismatches[:5])}{more}. Nothing was "
            "changed. Run it with the config.yaml that stands beside its checkpoints, or choose another output_dir"
        )
    _accept_one_process()
    dcp.load(dict(tensors), storage_reader=reader, no_dist=distributed.world_size == 1)


def _accept_one_process() -> None:
    """Ends what DCP says of every save and load of one process; for good, since warnings.catch_warnings would undo what
    another thread does meanwhile."""
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def _file_indices(tensors: Mapping[str, Tensor], world_size: int) -> dict[str, int]:
    """Numbers the tensors' files from 1, so that a rank's share of each has about _FILE_BYTES."""
    indices, index, filled = {}, 1, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size() // world_size
        if filled and filled + size > _FILE_BYTES:
            index, filled = index + 1, 0
        indices[name] = index
        filled += size
    return indices


def _form(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _describe(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
