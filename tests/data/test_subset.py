from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import write_tar
from webssl_fast.data.index import Index, StringTable
from webssl_fast.data.indexing import build_index
from webssl_fast.data.subset import Subset, of_ids, sampled, whole, write_subset
from webssl_fast.errors import UserError

pytest.importorskip("pyroaring")


def index_of(num_samples: int, identity: str = "a" * 64) -> Index:
    labels = np.broadcast_to(np.int32(-1), num_samples)
    return Index("simulated", "tar", "", StringTable.from_list([]), labels, [], identity=identity)


def written(path: Path, ids: np.ndarray, index: Index) -> Subset:
    write_subset(path, of_ids(ids), index)
    return Subset.of(path, index)


@pytest.mark.parametrize(
    "ids",
    [
        np.array([7]),
        np.array([0, 2**33 - 1]),
        np.arange(100_000),
        np.arange(10, 2**19, 3),
        np.unique(np.random.default_rng(0).integers(0, 2**33, 20_000)),
        np.unique(np.random.default_rng(1).integers(2**32 - 50_000, 2**32 + 50_000, 60_000)),
        np.concatenate([np.arange(5, 4_000), np.arange(2**31, 2**31 + 70_000), np.arange(2**32, 2**32 + 9_000, 2)]),
    ],
    ids=["one", "far", "all", "dense", "sparse", "across_2_to_32", "runs_and_others"],
)
def test_every_kind_of_container_gives_its_ids_in_order(tmp_path, ids):
    subset = written(tmp_path / "s", ids[::-1], index_of(2**33))
    assert len(subset) == len(ids) and (subset.select(np.arange(len(ids))) == ids).all()
    places = np.random.default_rng(2).integers(0, len(ids), 500)
    assert (subset.select(places) == ids[places]).all()
    assert np.array(subset.bitmap().to_array()).tolist() == ids.tolist()
    with pytest.raises(IndexError, match="places"):
        subset.select(np.array([len(ids)]))


def test_it_is_compressed(tmp_path):
    index = index_of(2**31)
    write_subset(tmp_path / "all", whole(index), index)
    assert (tmp_path / "all").stat().st_size < 2**19
    ids = np.random.default_rng(0).integers(0, 2**27, 2**20)
    assert written(tmp_path / "s", ids, index).path and (tmp_path / "s").stat().st_size < 2.2 * len(ids)


def test_share_depends_on_the_id_alone_and_is_nested():
    index = index_of(200_000)
    tenth, fifth = (sampled(whole(index), share, 5) for share in (0.1, 0.2))
    assert tenth.issubset(fifth)
    assert abs(len(tenth) - 20_000) < 5 * np.sqrt(18_000) and abs(len(fifth) - 40_000) < 5 * np.sqrt(32_000)
    some = of_ids(np.arange(1000, 90_000, 7))
    assert sampled(some, 0.1, 5) == tenth & some
    assert sampled(some, 0, 5) == of_ids(np.zeros(0, int)) and sampled(some, 1, 5) == some
    with pytest.raises(UserError, match="between 0 and 1"):
        sampled(some, 1.5, 5)


def test_a_subset_belongs_to_one_index(tmp_path):
    write_tar(tmp_path / "a.tar", {f"{i}.jpg": b"x" for i in range(9)})
    write_tar(tmp_path / "b.tar", {f"{i}.jpg": b"xy" * 600 for i in range(9)})
    for name in "ab":
        build_index(f"{tmp_path}/{name}.tar", tmp_path / f"{name}.index")
    a, b = (Index.open(f"{tmp_path}/{name}.index") for name in "ab")
    written(tmp_path / "s", np.array([1, 5]), a)
    with pytest.raises(UserError, match="another index.*b.index.*make it again"):
        Subset.of(tmp_path / "s", b)
    with pytest.raises(UserError, match="no saved index.*webssl data index"):
        Subset.of(tmp_path / "s", Index.open(f"{tmp_path}/a.tar"))
    with pytest.raises(UserError, match="9 lies outside"):
        written(tmp_path / "t", np.array([9]), a)
    with pytest.raises(UserError, match="from 0 on"):
        written(tmp_path / "t", np.array([-1]), a)


def test_truncated_files_are_refused(tmp_path):
    written(tmp_path / "s", np.arange(0, 10**6, 5), index_of(10**6))
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "cut").write_bytes(data[:-100])
    with pytest.raises(UserError, match="truncated"):
        Subset(tmp_path / "cut")
