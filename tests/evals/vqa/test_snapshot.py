from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.evals.vqa.tiny_benchmarks import IMAGE_TYPE, encoded, rendered
from webssl_fast.errors import UserError
from webssl_fast.evals.vqa.question import HubFiles
from webssl_fast.evals.vqa.snapshot import find_files, read_rows


def write(path: Path, **columns) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_rows_and_images(tmp_path: Path):
    cells = [encoded("one"), None, encoded("three")]
    first = write(tmp_path / "0.parquet", id=[1, 2, 3], image=pa.array(cells, IMAGE_TYPE))
    second = write(tmp_path / "1.parquet", id=[4], image=pa.array([encoded("four")], IMAGE_TYPE))
    rows = read_rows([first, second], ["id"], "image")
    assert [(row.number, row["id"], row.num_images) for row in rows] == [(0, 1, 1), (1, 2, 0), (2, 3, 1), (3, 4, 1)]
    assert rows[1].image is None
    for row, text in ((rows[3], "four"), (rows[0], "one"), (rows[2], "three")):
        assert row.image().tobytes() == rendered(text).tobytes()
        assert row.read_image() == encoded(text)["bytes"]


def test_images_are_plain_bytes_or_in_lists_too(tmp_path: Path):
    plain = write(tmp_path / "plain.parquet", image=[encoded("one")["bytes"], None])
    assert [row.num_images for row in read_rows([plain], [], "image")] == [1, 0]
    assert read_rows([plain], [], "image")[0].image().size == (160, 96)
    lists = pa.array([[encoded("one")], [], None, [encoded("two"), encoded("three")]], pa.list_(IMAGE_TYPE))
    rows = read_rows([write(tmp_path / "lists.parquet", image=lists)], [], "image")
    assert [row.num_images for row in rows] == [1, 0, 0, 2]
    assert rows[3].image().tobytes() == rendered("two").tobytes()


def test_no_image_is_read_before_it_is_asked_for(tmp_path: Path):
    cells = [{"bytes": bytes(1000), "path": "broken.png"}, encoded("fine")]
    rows = read_rows([write(tmp_path / "0.parquet", image=pa.array(cells, IMAGE_TYPE))], [], "image")
    assert rows[1].image().size == (160, 96)
    with pytest.raises(UserError, match=r"the image of row 0 cannot be read.*fetch the data again"):
        rows[0].image()


def test_images_become_rgb_and_upright(tmp_path: Path):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("L", (20, 10), 77).save(file, "jpeg", exif=exif)
    row = read_rows([write(tmp_path / "0.parquet", image=[file.getvalue()])], [], "image")[0]
    assert row.image().mode == "RGB" and row.image().size == (10, 20)


def test_rejects_other_columns(tmp_path: Path):
    path = write(tmp_path / "0.parquet", id=[1], picture=["x"])
    with pytest.raises(UserError, match=r"0.parquet has no column answer, image: its columns are id, picture, exp"):
        read_rows([path], ["id", "answer"], "image")


def test_rejects_what_is_no_parquet(tmp_path: Path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match=r"0.parquet' cannot be read as Parquet"):
        read_rows([tmp_path / "0.parquet"], ["id"])


def test_files_of_the_first_layout_that_is_whole(tmp_path: Path):
    layouts = [HubFiles("a/old", ("data/test-*.parquet",)), HubFiles("b/new", ("en/test-*.parquet", "names.csv"))]
    (tmp_path / "en").mkdir()
    (tmp_path / "en/test-1.parquet").touch()
    (tmp_path / "en/test-0.parquet").touch()
    with pytest.raises(UserError, match=r"holds en/test-0.parquet, en/test-1.parquet; expected are data/test-"):
        find_files(tmp_path, layouts)
    (tmp_path / "names.csv").touch()
    parquet, names = find_files(tmp_path, layouts)
    assert [path.name for path in parquet] == ["test-0.parquet", "test-1.parquet"]
    assert names == [tmp_path / "names.csv"]
    with pytest.raises(UserError, match="there is no folder"):
        find_files(tmp_path / "nowhere", layouts)
