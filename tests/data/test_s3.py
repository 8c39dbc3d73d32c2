"""Shards and Parquet files on a local S3 server (`pip install s3fs 'moto[server]'`), as they are on local disks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.data.image_files import encode, picture, write_tar
from tests.data.test_parquet import png, write_parquet
from webssl_fast.data.index import Index
from webssl_fast.data.indexing import build_index
from webssl_fast.data.read import SampleReader
from webssl_fast.data.storage import Retries

pytestmark = pytest.mark.nightly
QUICK = Retries(attempts=3, first_delay_s=0.01)


@pytest.fixture(scope="module")
def bucket():
    """fsspec's file system of a bucket that this machine serves."""
    s3fs, moto = pytest.importorskip("s3fs"), pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = s3fs.S3FileSystem()
        store.mkdir("web")
        yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_shards(bucket, tmp_path: Path):
    for shard in range(3):
        members = {}
        for i in range(10):
            members |= {
                f"{shard}-{i}.jpg": encode(picture(30, 40, seed=i)),
                f"{shard}-{i}.txt": f"caption {i}".encode(),
            }
        write_tar(tmp_path / f"{shard}.tar", members)
        bucket.put(str(tmp_path / f"{shard}.tar"), f"web/{shard}.tar")
    build_index("s3://web/*.tar", tmp_path / "i")
    saved, local, reader = Index.open(str(tmp_path / "i")), Index.open(f"{tmp_path}/*.tar"), SampleReader(retries=QUICK)
    places = np.random.default_rng(0).permutation(30).tolist()
    assert reader.read_many([saved.locate(i) for i in places]) == reader.read_many([local.locate(i) for i in places])
    assert saved.name(17) == "1-7" and reader.read(saved.locate_member(17, "txt")) == b"caption 7"
    bucket.rm("web/1.tar")
    found = reader.read_many([saved.locate(i) for i in (5, 15, 25)])
    assert [isinstance(data, bytes) for data in found] == [True, False, True], "the others are not taken along"


def test_parquet(bucket, tmp_path: Path):
    write_parquet(tmp_path / "x.parquet", 0, 8)
    bucket.put(str(tmp_path / "x.parquet"), "web/x.parquet")
    index = Index.open("s3://web/x.parquet")
    assert SampleReader(retries=QUICK).read_many([index.locate(i) for i in (7, 0, 3)]) == [png(70), png(0), png(30)]
