import os

import numpy as np
import pytest

from tests.data.image_files import write_folder, write_tar
from webssl_fast.data.index import WHOLE_FILE, Index, Location
from webssl_fast.data.read import SampleReader
from webssl_fast.errors import UserError


def names(index):
    return [index.name(i) for i in range(len(index))]


def test_folder_is_in_natural_order_at_any_depth(tmp_path):
    write_folder(
        tmp_path, {n: b"x" for n in ("b/10.jpg", "b/9.JPG", "a/x/y/z/1.webp", "b/c.txt", "b/._9.jpg", ".git/1.png")}
    )
    index = Index.open(str(tmp_path))
    assert names(index) == ["a/x/y/z/1.webp", "b/9.JPG", "b/10.jpg"]
    assert index.locate(2) == Location(str(tmp_path / "b/10.jpg"), 0, WHOLE_FILE)
    assert index.class_names == ["a", "b"]
    assert index.label(np.array([2, 0, 1])).tolist() == [1, 0, 1] and index.label(np.array([0])).dtype == np.int64


def test_classes_are_the_first_folders_below_what_all_paths_share(tmp_path):
    write_folder(
        tmp_path, {n: b"x" for n in ("images/set/cat/1.png", "images/set/dog/deep/1.png", "images/set/loose.png")}
    )
    index = Index.open(str(tmp_path))
    assert index.class_names == ["cat", "dog"]
    assert dict(zip(names(index), index.labels.tolist(), strict=True)) == {
        "images/set/cat/1.png": 0,
        "images/set/dog/deep/1.png": 1,
        "images/set/loose.png": -1,
    }


def test_one_folder_is_no_class(tmp_path):
    index = Index.open(str(write_folder(tmp_path, {"only/1.jpg": b"x", "only/2.jpg": b"x"})))
    assert index.class_names == [] and index.labels.tolist() == [-1, -1]


def test_labels_of_a_test_folder_count_in_the_classes_of_training(tmp_path):
    write_folder(tmp_path, {"b/1.jpg": b"x"})
    index = Index.open(str(tmp_path), class_names=["a", "b", "c"])
    assert index.class_names == ["a", "b", "c"] and index.labels.tolist() == [1]
    write_folder(tmp_path, {"new/1.jpg": b"x"})
    with pytest.raises(UserError, match="'new'.*none of the 3"):
        Index.open(str(tmp_path), class_names=["a", "b", "c"])


def test_folder_that_is_named_like_an_image_is_entered(tmp_path):
    assert names(Index.open(str(write_folder(tmp_path, {"x.jpg/1.png": b"x"})))) == ["x.jpg/1.png"]


def test_links_are_followed_and_circles_end(tmp_path):
    write_folder(tmp_path, {"real/1.jpg": b"x"})
    root = tmp_path / "root"
    root.mkdir()
    (root / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "circle").symlink_to(tmp_path / "real")
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere")
    assert names(Index.open(str(root))) == ["gone.jpg", "linked/1.jpg"]


def test_names_that_are_no_utf8_survive(tmp_path):
    name = os.fsdecode(b"bl\xfc.jpg")
    index = Index.open(str(write_folder(tmp_path, {name: b"x"})))
    assert index.name(0) == name and SampleReader().read(index.locate(0)) == b"x"


def test_shards_group_members_and_keep_the_rest(tmp_path):
    write_tar(tmp_path / "s-00.tar", {"a.jpg": b"JPEG", "a.cls": b"7\n", "a.txt": b"caption", "b.png": b"PNG"})
    write_tar(tmp_path / "s-01.tar", {"d/c.seg.png": b"SEG", "d/c.jpg": b"IMAGE", "d/c.json": b"{}"})
    index = Index.open(str(tmp_path / "s-{00..01}.tar"))
    read = SampleReader().read
    assert names(index) == ["a", "b", "d/c"]
    assert [read(index.locate(i)) for i in range(3)] == [b"JPEG", b"PNG", b"IMAGE"]
    assert index.labels.tolist() == [7, -1, -1] and index.class_names[7] == "7"
    assert read(index.locate_member(0, "txt")) == b"caption" and index.locate_member(1, "txt") is None
    assert read(index.locate_member(2, "seg.png")) == b"SEG" and read(index.locate_member(2, "json")) == b"{}"


@pytest.mark.parametrize("tar_format", [0, 1, 2], ids=["ustar", "gnu", "pax"])
def test_long_names_in_every_tar_format(tmp_path, tar_format):
    key = "f" * 60 + "/" + "k" * (80 if tar_format == 0 else 300)
    write_tar(tmp_path / "x.tar", {f"{key}.jpg": b"JPEG" * 500, "z.jpg": b"Z"}, format=tar_format)
    index = Index.open(str(tmp_path / "*.tar"))
    assert names(index) == [key, "z"]
    assert [len(SampleReader().read(index.locate(i))) for i in range(2)] == [2000, 1]


def test_globs_and_lists_of_shards(tmp_path):
    for name in ("a-2", "a-10", "b-1"):
        write_tar(tmp_path / f"{name}.tar", {f"{name}.jpg": b"x"})
    assert names(Index.open(str(tmp_path / "a-*.tar"))) == ["a-2", "a-10"]
    assert names(Index.open(str(tmp_path / "{b-1,a-2}.tar"))) == ["a-2", "b-1"]
    assert names(Index.open(str(tmp_path / "b-1.tar"))) == ["b-1"]


def test_sample_without_image_is_left_out_and_said(tmp_path, caplog):
    write_tar(tmp_path / "x.tar", {"a.txt": b"t", "b.jpg": b"x"})
    assert names(Index.open(str(tmp_path / "x.tar"))) == ["b"]
    assert "1 samples" in caplog.text


def test_truncated_shard_is_an_error_wherever_it_is_cut(tmp_path):
    whole = write_tar(tmp_path / "x.tar", {"a.jpg": b"1" * 700, "b.jpg": b"2" * 700}).read_bytes()
    for cut in (100, 512, 700, 1024, 1536, 1700, 2048, 2500, 3072):  # in headers, in members, between members
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cut.tar.*truncated or damaged"):
            Index.open(str(tmp_path / "cut.tar"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "empty"),
        ("missing", "missing.*does not exist"),
        ("empty", "no images.*jpeg, jpg.*png"),
        ("only_tars", r"1 \.tar files.*\*\.tar"),
        ("none-*.tar", "matches no file"),
        ("only_tars/{x,y}.tar", r"2 files, of which 1 do not exist.*y\.tar"),
        ("only_tars/{9..1}.tar", "backwards"),
        ("file.txt", "must be a folder"),
        ("gz.tar", "compressed"),
        ("text_label.tar", "whole number, got 'cat'"),
        ("no_image.tar", "no images in 1 shards"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path, {"file.txt": b"", "empty/readme.txt": b"", "gz.tar": b"\x1f\x8b\x08" + bytes(600)})
    (tmp_path / "only_tars").mkdir()
    write_tar(tmp_path / "only_tars" / "x.tar", {"a.jpg": b"x"})
    write_tar(tmp_path / "text_label.tar", {"a.jpg": b"x", "a.cls": b"cat"})
    write_tar(tmp_path / "no_image.tar", {"a.txt": b"x"})
    with pytest.raises(UserError, match=message):
        Index.open(source)
