"""What bench_data compares our loader with: torch's DataLoader over torchvision's ImageFolder, and webdataset's own
loader over shards. Both decode with Pillow and make the ten crops of DINOv2 with torchvision, in worker processes.

They run wherever torchvision and webdataset are installed; they are no dependencies of ours, since torchvision pulls a
torch of its own.
"""

from __future__ import annotations

import importlib.util
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.crop_rivals import import_torchvision, torchvision_chains


@dataclass(frozen=True)
class LoaderRival:
    name: str
    num_workers: int
    versions: dict[str, str]
    epoch: Callable[[], None]  # loads so many images, and leaves nothing made ahead


def torchvision_loaders(
    folder: Path, num_images: int, batch: int, worker_counts: Iterable[int]
) -> Iterator[LoaderRival]:
    """ImageFolder and DataLoader with the transforms of torchvision's first API, which is DINOv2's loader, and of its
    second. `num_images` are drawn for an epoch."""
    import_torchvision()
    from torchvision.datasets import ImageFolder

    for num_workers in worker_counts:
        for api in ("v1", "v2"):
            dataset = ImageFolder(str(folder), partial(_ten_crops, torchvision_chains(api)))
            loader: DataLoader = DataLoader(
                dataset,
                batch,
                sampler=RandomSampler(dataset, num_samples=num_images),
                num_workers=num_workers,
                persistent_workers=True,
            )
            versions = {"torchvision": version("torchvision")}
            yield LoaderRival(f"torchvision_{api}", num_workers, versions, partial(_run, loader, num_images))


def webdataset_loaders(
    shards: list[str], num_images: int, batch: int, worker_counts: Iterable[int]
) -> Iterator[LoaderRival]:
    """webdataset's pipeline and WebLoader; a worker takes every so many'th shard, and an epoch is as long as ours."""
    import webdataset

    chains = torchvision_chains("v1")  # the faster one
    for num_workers in worker_counts:
        if num_workers > len(shards):
            raise ValueError(f"{num_workers} workers of webdataset need as many shards, there are {len(shards)}")
        dataset = (
            webdataset.WebDataset(shards, shardshuffle=len(shards))
            .shuffle(100)
            .decode("pil")
            .map(lambda sample: _ten_crops(chains, sample["jpg"]))
            .batched(batch)
            .with_epoch(num_images // batch // num_workers)  # batches of each worker
        )
        loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=num_workers, persistent_workers=True)
        versions = {"webdataset": version("webdataset"), "torchvision": version("torchvision")}
        yield LoaderRival("webdataset", num_workers, versions, partial(_run, loader, num_images))


def installed() -> dict[str, bool]:
    return {name: importlib.util.find_spec(name) is not None for name in ("torchvision", "webdataset")}


def unpack(shards: list[str], folder: Path) -> Path:
    """The members of shards as files of an ImageFolder, a folder for each shard."""
    for number, shard in enumerate(shards):
        with tarfile.open(shard) as tar:
            tar.extractall(folder / f"{number:05d}", filter="data")
    return folder


def _ten_crops(chains: list[Callable[[Image.Image], Tensor]], image: Image.Image) -> tuple[Tensor, ...]:
    return tuple(chain(image) for chain in chains)


def _run(loader: Iterable, num_images: int) -> None:
    num_seen = 0
    for batch in loader:
        crops = batch[0] if isinstance(batch[0], list | tuple) else batch  # ImageFolder adds a label
        num_seen += len(crops[0])
    if num_seen != num_images:
        raise RuntimeError(f"a rival loaded {num_seen} images of {num_images}")
