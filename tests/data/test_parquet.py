from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.range_server import Faults, serving
from tests.data.image_files import write_folder, write_tar
from webssl_fast.config.schema import DataConfig
from webssl_fast.data import storage
from webssl_fast.data.captions import read_captions
from webssl_fast.data.index import Index, Location
from webssl_fast.data.indexing import build_index
from webssl_fast.data.pipeline import EvalLoader
from webssl_fast.data.read import SampleReader
from webssl_fast.data.storage import Retries
from webssl_fast.errors import UserError
from webssl_fast.records import Preprocessing

CLASSES = ["cat", "dog", "owl"]


def png(color: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (color, color, color)).save(file, "png")
    return file.getvalue()


def write_parquet(
    path: Path, first: int, num_rows: int, *, text: list | None = None, row_group_size: int = 3, **columns
) -> None:
    """Rows `first`, first + 1, ... in the layout of Hugging Face: image structs, labels with named classes, texts."""
    rows = range(first, first + num_rows)
    table = {
        "image": [{"bytes": png(10 * i), "path": f"{i}.png"} for i in rows],
        "label": [i % 3 for i in rows],
        "text": text or [[f"picture {i}", "another text"] for i in rows],
    } | columns
    features = {"label": {"names": CLASSES, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({name: column for name, column in table.items() if column is not None})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=row_group_size)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    write_parquet(tmp_path / "train-00000-of-00002.parquet", 0, 7)
    write_parquet(tmp_path / "train-00001-of-00002.parquet", 7, 5)
    return Index.open(str(tmp_path / "train-*.parquet"))


def test_rows_are_samples(index: Index):
    reader = SampleReader()
    assert len(index) == 12
    assert index.class_names == CLASSES and index.label(np.arange(12)).tolist() == [i % 3 for i in range(12)]
    assert [reader.read(index.locate(i)) for i in (11, 0, 6, 7)] == [png(110), png(0), png(60), png(70)]
    assert index.name(8) == "train-00001-of-00002.parquet, row 1"


def test_reads_from_many_threads(index: Index):
    reader = SampleReader()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reader.read(index.locate(i)), list(range(12)) * 20))
    assert found == [png(10 * i) for i in range(12)] * 20
    reader.close()


def test_goes_through_the_loader(index: Index):
    (batch,) = EvalLoader(index, DataConfig(), preprocessing=Preprocessing(resize_px=8, crop_px=8), batch_size=12)
    images, labels = batch[0], batch[1]
    assert labels.tolist() == [i % 3 for i in range(12)]
    assert (images.mean((1, 2, 3)).diff() > 0).all(), "each picture is brighter than the one before"


def test_plain_bytes_and_no_label(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", 0, 2, image=[png(1), png(2)], label=None, text=["one", "two"])
    index = Index.open(str(tmp_path / "x.parquet"))
    assert SampleReader().read(index.locate(1)) == png(2)
    assert index.class_names == [] and index.labels.tolist() == [-1, -1]
    assert read_captions(index, [1, 0]) == ["two", "one"]


def test_an_empty_cell_is_that_sample_s_error(tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", 0, 2, image=[{"bytes": png(1), "path": ""}, {"bytes": None, "path": "x"}])
    index, reader = Index.open(str(tmp_path / "x.parquet")), SampleReader()
    assert reader.read(index.locate(0)) == png(1)
    with pytest.raises(OSError, match="x.parquet', row 1, column 'image' holds neither bytes nor text"):
        reader.read(index.locate(1))
    with pytest.raises(OSError, match="row 9"):
        reader.read(Location(str(tmp_path / "x.parquet"), 9, -2, "image"))


def test_files_of_a_server_that_drops_connections(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(storage, "_MAX_DELAY_S", 0.01)
    faults = Faults(drop_share=0.2, delay_share=0.1, delay_s=0.01)
    with serving(tmp_path, faults) as url:
        pattern = f"{url}/train-0000{{0..1}}-of-00002.parquet"
        build_index(pattern, tmp_path / "i")
        for remote in (Index.open(pattern), Index.open(str(tmp_path / "i"))):
            assert remote.class_names == CLASSES and remote.labels.tolist() == index.labels.tolist()
            reader = SampleReader()
            places = np.random.default_rng(0).permutation(12).tolist()
            assert reader.read_many([remote.locate(i) for i in places]) == [png(10 * i) for i in places]
            assert read_captions(remote, [8, 2]) == ["picture 8", "picture 2"]
        assert faults.num_dropped > 3
        (tmp_path / "train-00001-of-00002.parquet").unlink()
        first, gone = SampleReader(Retries(attempts=2)).read_many([remote.locate(0), remote.locate(9)])
    assert first == png(0) and isinstance(gone, OSError) and "train-00001" in str(gone)


def test_rejects_what_is_no_parquet(tmp_path: Path):
    (tmp_path / "page.parquet").write_text("<html>Access denied</html>")
    with pytest.raises(UserError, match="page.parquet' cannot be read as Parquet"):
        Index.open(str(tmp_path / "page.parquet"))
    pq.write_table(pa.table({"url": ["a"]}), tmp_path / "urls.parquet")
    with pytest.raises(UserError, match=r"no image column: its columns are \['url'\]"):
        Index.open(str(tmp_path / "urls.parquet"))
    with pytest.raises(UserError, match=r"1 .parquet files|2 .parquet files"):
        Index.open(str(tmp_path))


def test_rejects_labels_beyond_the_classes_of_training(index: Index, tmp_path: Path):
    with pytest.raises(UserError, match="label 2, but there are 2 classes"):
        Index.open(str(tmp_path / "train-*.parquet"), class_names=["a", "b"])


def test_captions_of_every_kind_of_source(index: Index, tmp_path: Path):
    assert read_captions(index, [8, 2]) == ["picture 8", "picture 2"]
    tar = write_tar(tmp_path / "s.tar", {"a.jpg": b"x", "a.txt": "größer ".encode(), "b.jpg": b"x"})
    shards = Index.open(str(tar or tmp_path / "s.tar"))
    assert read_captions(shards, [0]) == ["größer"]
    with pytest.raises(UserError, match="sample 'b' has no caption. It stands in a .txt file"):
        read_captions(shards, [0, 1])
    folder = Index.open(str(write_folder(tmp_path / "f", {"x/1.jpg": b"x", "x/1.txt": b"one", "x/2.jpg": b"x"})))
    assert read_captions(folder, [0]) == ["one"]
    (tmp_path / "f/x/2.txt").write_bytes(b" ")
    with pytest.raises(UserError, match="empty caption"):
        read_captions(folder, [1])
