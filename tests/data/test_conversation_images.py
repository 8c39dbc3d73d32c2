"""Images by the names that conversations give them, in folders and in shards."""

from __future__ import annotations

import io
import os
import tarfile

import pytest

from webssl_fast.data.conversation_images import open_images
from webssl_fast.data.read import SampleReader
from webssl_fast.errors import UserError


def write_shard(path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_a_folder(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a.b.jpg").write_bytes(b"pixels")
    images = open_images(str(tmp_path), str(tmp_path / "keys"))
    assert SampleReader().read(images.locate("coco/a.b.jpg")) == b"pixels"
    with pytest.raises(OSError):
        SampleReader().read(images.locate("coco/none.jpg"))


def test_shards_by_key(tmp_path):
    write_shard(tmp_path / "0.tar", {"coco/0.jpg": b"zero", "coco/0.txt": b"text", "coco/1.png": b"one"})
    write_shard(tmp_path / "1.tar", {"sam/0.webp": b"two"})
    keys = tmp_path / "kept" / "keys.index"
    images = open_images(str(tmp_path / "{0..1}.tar"), str(keys))
    read = SampleReader().read
    assert read(images.locate("coco/0.jpg")) == b"zero"
    assert read(images.locate("sam/0.webp")) == b"two" and read(images.locate("coco/1.png")) == b"one"
    with pytest.raises(KeyError):
        images.locate("coco/2.jpg")
    made = os.stat(keys).st_mtime_ns
    open_images(str(tmp_path / "{0..1}.tar"), str(keys))
    assert os.stat(keys).st_mtime_ns == made, "keys are read once"


def test_rejects_keys_that_stand_twice(tmp_path):
    write_shard(tmp_path / "0.tar", {"a.jpg": b"zero"})
    write_shard(tmp_path / "1.tar", {"a.jpg": b"one"})
    with pytest.raises(UserError, match="1 keys stand twice.*'a'"):
        open_images(str(tmp_path / "*.tar"), str(tmp_path / "keys"))
