"""What a run trains on: one source or several, whole or subsets of them, as one range of sample ids and one order.

Dimensions: B positions, M sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from webssl_fast.config.schema import DataConfig, SourceConfig
from webssl_fast.data.index import Index, Location
from webssl_fast.data.mixture import Mixture
from webssl_fast.data.order import mixed, replacement_ids, sample_ids
from webssl_fast.data.subset import Subset


@dataclass(frozen=True)
class Part:
    """One source: of `index` the samples of `subset`, or all where that is None."""

    index: Index
    subset: Subset | None = None
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.index) if self.subset is None else len(self.subset)

    def ids(self, places_B: np.ndarray) -> np.ndarray:
        return places_B if self.subset is None else self.subset.select(places_B)


class TrainingData:
    """Sources with weights. The ids of source m, counted in its index, come after those of the sources before it."""

    def __init__(self, parts: Sequence[Part]):
        self.parts = list(parts)
        self._first_ids = np.cumsum([0, *(len(part.index) for part in parts)])

    @classmethod
    def open(cls, config: DataConfig) -> TrainingData:
        """Raises UserError where a source or a subset is not there, or they do not belong together."""
        parts = []
        for source in sources_of(config):
            index = Index.open(source.source)
            parts.append(Part(index, Subset.of(source.subset, index) if source.subset else None, source.weight))
        return cls(parts)

    def __len__(self) -> int:
        """Samples that training can see, over all sources."""
        return sum(len(part) for part in self.parts)

    @property
    def source(self) -> str:
        """In words."""
        return ", ".join(
            part.index.source if part.subset is None else f"{part.subset.path} of {part.index.source}"
            for part in self.parts
        )

    def locate(self, sample_id: int) -> Location:
        number, own_id = self._own(sample_id)
        return self.parts[number].index.locate(own_id)

    def locate_member(self, sample_id: int, extension: str) -> Location | None:
        number, own_id = self._own(sample_id)
        return self.parts[number].index.locate_member(own_id, extension)

    def name(self, sample_id: int) -> str:
        number, own_id = self._own(sample_id)
        return self.parts[number].index.name(own_id)

    def label(self, sample_ids: np.ndarray) -> np.ndarray:
        """int64 labels as each source has them; -1 where a sample has none."""
        labels = np.empty(len(sample_ids), np.int64)
        number_of = np.searchsorted(self._first_ids, sample_ids, side="right") - 1
        for number in np.unique(number_of).tolist():
            here = number_of == number
            labels[here] = self.parts[number].index.label(sample_ids[here] - self._first_ids[number])
        return labels

    def ids(self, number: int, places_B: np.ndarray) -> np.ndarray:
        """Sample ids of the places (int64 [B]) in source `number`, of its subset where it has one."""
        return self._first_ids[number] + self.parts[number].ids(places_B)

    def _own(self, sample_id: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._first_ids, sample_id, side="right")) - 1
        if not 0 <= number < len(self.parts):
            raise IndexError(f"sample {sample_id} of {self._first_ids[-1]}")
        return number, sample_id - int(self._first_ids[number])


def sources_of(config: DataConfig) -> tuple[SourceConfig, ...]:
    return config.sources or (SourceConfig(source=config.source, subset=config.subset),)


class SampleOrder:
    """The sample at each position of a run: a pure function of the seed and the position."""

    def __init__(self, data: TrainingData, seed: int, run_length: int = 1):
        self._data, self._seed, self._run_length = data, seed, run_length
        self._mixture = Mixture(seed, [part.weight for part in data.parts])

    def sample_ids(self, positions_B: np.ndarray) -> np.ndarray:
        """int64 [B] for positions int64 [B] from 0 on."""
        return self._drawn(
            positions_B, lambda seed, num_samples, own_B: sample_ids(seed, num_samples, own_B, self._run_length)
        )

    def replacement_ids(self, positions_B: np.ndarray, attempt: int) -> np.ndarray:
        """int64 [B]: the sample of the same source to try where `attempt` before could not be decoded."""
        return self._drawn(
            positions_B, lambda seed, num_samples, own_B: replacement_ids(seed, num_samples, own_B, attempt)
        )

    def epochs(self, num_positions: int) -> dict[str, float]:
        """Passes over the samples after so many positions: "epoch", or "epoch/0", "epoch/1", ... of several sources."""
        parts = self._data.parts
        if len(parts) == 1:
            return {"epoch": num_positions / len(parts[0])}
        seen = self._mixture.seen(num_positions).tolist()
        return {f"epoch/{m}": seen[m] / len(part) for m, part in enumerate(parts)}

    def _drawn(self, positions_B: np.ndarray, draw) -> np.ndarray:
        source_B, own_B = self._mixture.at(positions_B)
        ids_B = np.empty(len(source_B), np.int64)
        for number in np.unique(source_B).tolist():
            here = source_B == number
            places_B = draw(mixed(self._seed, number), len(self._data.parts[number]), own_B[here])
            ids_B[here] = self._data.ids(number, places_B)
        return ids_B
