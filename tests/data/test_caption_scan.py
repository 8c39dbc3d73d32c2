"""Captions read by whole shards are those that are read one by one, whatever lies between them."""

import pytest

from tests.data.image_files import write_folder, write_tar
from webssl_fast.data import caption_scan
from webssl_fast.data.caption_scan import caption_ranges, scan_captions
from webssl_fast.data.captions import read_caption
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.read import SampleReader
from webssl_fast.errors import UserError


def scanned(index: Index) -> list[str]:
    ranges = caption_ranges(index)
    assert [first for first, _ in ranges] + [len(index)] == [0, *(end for _, end in ranges)]
    return [caption for first, end in ranges for caption in scan_captions(index, first, end)]


def one_by_one(index: Index) -> list[str]:
    def read(sample_id: int) -> str:
        try:
            return read_caption(index, reader, sample_id)
        except UserError:
            return ""

    reader = SampleReader()
    return [read(sample_id) for sample_id in range(len(index))]


MEMBERS = {
    "a/0.jpg": b"x" * 700,
    "a/0.txt": b" the first ",
    "a/1.jpg": b"",  # no caption
    "a/2.txt": b"before its image",
    "a/2.json": b"{}",
    "a/2.jpg": b"x" * 513,
    "a/3.txt": b"of no image",
    "a/4.jpg": b"x",
    "a/4.txt": b"\xff\xfe not UTF-8",
    "a/5.jpg": b"x",
    "a/5.txt": b" \n\t ",
    "a/" + "long name " * 20 + ".jpg": b"x",
    "a/" + "long name " * 20 + ".txt": "ein Bär – 熊".encode(),
    "a/6.txt": b"of no image either",
    "a/7.jpg": b"x",
    "a/7.left.txt": b"another member",
    "a/7.txt": b"the last",
    "a/8.txt": b"at the end",
}
CAPTIONS = ["the first", "", "before its image", "", "", "ein Bär – 熊", "the last"]


@pytest.mark.parametrize("where", ["scan", "saved", "remote"])
def test_shards(tmp_path, where):
    write_tar(tmp_path / "0.tar", MEMBERS)
    write_tar(tmp_path / "1.tar", {"a/3.txt": b"of no image"})
    write_tar(tmp_path / "2.tar", dict(list(MEMBERS.items())[:5]))
    source = f"{tmp_path}/*.tar"
    if where == "remote":
        pytest.importorskip("fsspec")
        source = f"file://{source}"
    if where != "scan":
        build_index(source, tmp_path / "i")
        source = str(tmp_path / "i")
    index = Index.open(source)
    assert scanned(index) == one_by_one(index) == [*CAPTIONS, "the first", ""]


def test_a_shard_cut_short_and_one_that_is_gone(tmp_path):
    whole = write_tar(tmp_path / "0.tar", MEMBERS).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: whole.index(b"ein B")])
    build_index(f"{tmp_path}/*.tar", tmp_path / "i")
    index = Index.open(str(tmp_path / "i"))
    assert scanned(index) == one_by_one(index) and scanned(index)[:3] == CAPTIONS[:3]
    (tmp_path / "0.tar").unlink()
    with pytest.raises(OSError, match=r"0\.tar"):
        scanned(index)


def test_folders_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(caption_scan, "FILES_AT_ONCE", 3)
    files = {f"{i}.jpg": b"x" for i in range(7)} | {f"{i}.txt": f"caption {i}".encode() for i in range(0, 7, 2)}
    index = Index.open(str(write_folder(tmp_path / "images", files)))
    assert scanned(index) == one_by_one(index) == ["caption 0", "", "caption 2", "", "caption 4", "", "caption 6"]


def test_parquet_files(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    texts = [["a dog", None, " a cat\n"], [["first", "second"], [], None]]
    for number, column in enumerate(texts):
        folder = tmp_path / str(number)
        folder.mkdir()
        parquet.write_table(table({"image": [b"x"] * 3, "text": column}), folder / "0.parquet", row_group_size=2)
    expected = [["a dog", "", "a cat"], ["first", "", ""]]
    for number in range(2):
        index = Index.open(f"{tmp_path}/{number}/*.parquet")
        assert scanned(index) == one_by_one(index) == expected[number]
    parquet.write_table(table({"image": [b"x"]}), tmp_path / "bare.parquet")
    with pytest.raises(UserError, match="has no captions: no column named text"):
        caption_ranges(Index.open(f"{tmp_path}/bare.parquet"))
