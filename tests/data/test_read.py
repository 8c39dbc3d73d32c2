import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.data.image_files import write_tar
from webssl_fast.data.index import WHOLE_FILE, Index, Location
from webssl_fast.data.read import SampleReader


def test_whole_file_and_part(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    reader = SampleReader()
    assert reader.read(Location(str(tmp_path / "f"), 0, WHOLE_FILE)) == b"0123456789"
    assert reader.read(Location(str(tmp_path / "f"), 3, 4)) == b"3456"
    assert reader.read(Location(str(tmp_path / "f"), 3, 0)) == b""


def test_what_cannot_be_read_is_an_os_error(tmp_path):
    (tmp_path / "f").write_bytes(b"0123456789")
    (tmp_path / "folder.jpg").mkdir()
    reader = SampleReader()
    for location in (
        Location(str(tmp_path / "gone.jpg"), 0, WHOLE_FILE),
        Location(str(tmp_path / "folder.jpg"), 0, WHOLE_FILE),
        Location(str(tmp_path / "gone.tar"), 0, 5),
    ):
        with pytest.raises(OSError):
            reader.read(location)
    with pytest.raises(OSError, match="2 of 5 bytes"):
        reader.read(Location(str(tmp_path / "f"), 8, 5))


def test_shards_are_shared_by_threads_and_few_stay_open(tmp_path):
    contents = {s: {f"{s}-{i}.jpg": os.urandom(3000 + i) for i in range(20)} for s in range(6)}
    for s, members in contents.items():
        write_tar(tmp_path / f"{s}.tar", members)
    index = Index.open(str(tmp_path / "*.tar"))
    reader = SampleReader(max_open=2)
    num_open = len(os.listdir("/proc/self/fd"))
    expected = {name.removesuffix(".jpg"): data for members in contents.values() for name, data in members.items()}
    with ThreadPoolExecutor(8) as pool:
        for name, data in pool.map(lambda i: (index.name(i), reader.read(index.locate(i))), [*range(len(index))] * 20):
            assert data == expected[name]
    assert len(os.listdir("/proc/self/fd")) <= num_open + 2
    reader.close()
    assert len(os.listdir("/proc/self/fd")) <= num_open


def test_reads_go_on_in_a_forked_process(tmp_path):
    write_tar(tmp_path / "x.tar", {f"{i}.jpg": bytes([i]) * 100 for i in range(50)})
    index = Index.open(str(tmp_path / "x.tar"))
    reader = SampleReader()
    reader.read(index.locate(0))
    child = os.fork()
    good = all(reader.read(index.locate(i)) == bytes([i]) * 100 for _ in range(100) for i in range(50))
    if child == 0:
        os._exit(0 if good else 1)
    assert good and os.waitpid(child, 0)[1] == 0
