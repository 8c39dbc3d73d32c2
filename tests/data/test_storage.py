"""Ranges of local and remote files; the remote ones from a server that drops and delays connections."""

import os
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from benchmarks.range_server import Faults, serving
from webssl_fast.data import storage as storage_module
from webssl_fast.data.storage import Retries, Storage
from webssl_fast.errors import UserError

QUICK = Retries(attempts=8, timeout_s=5, first_delay_s=0.001)
DATA = os.urandom(1_000_000)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "f.bin").write_bytes(DATA)
    return folder


@pytest.mark.parametrize("kind", ["local", "file", "memory", "http"])
def test_ranges_of_every_kind_of_store(folder, kind):
    with serving(folder) as url:
        path = {
            "local": f"{folder}/f.bin",
            "file": f"file://{folder}/f.bin",
            "memory": "memory://ranges/f.bin",
            "http": f"{url}/f.bin",
        }[kind]
        if kind == "memory":
            fsspec.filesystem("memory").pipe("/ranges/f.bin", DATA)
        storage = Storage(QUICK)
        assert storage.size(path) == len(DATA)
        assert storage.read(path, 12_345, 6_789) == DATA[12_345 : 12_345 + 6_789]
        assert storage.read(path, 5, 0) == b""
        with storage.open(path) as file:
            file.seek(-10, os.SEEK_END)
            assert file.read() == DATA[-10:]
            file.seek(700_000)
            assert file.read(300_000) == DATA[700_000:]
        with pytest.raises(OSError, match=r"f\.bin.*(ends early|cannot be read)"):
            storage.read(path, len(DATA) - 5, 10)
        with pytest.raises(OSError):
            storage.read(path.replace("f.bin", "gone.bin"), 0, 10)
        assert storage.num_retries == 0, "what is missing for good is not asked for again"


def test_dropped_and_delayed_connections_change_nothing(folder):
    faults = Faults(drop_share=0.2, delay_share=0.1, delay_s=0.02)
    with serving(folder, faults) as url, ThreadPoolExecutor(4) as pool:
        storage = Storage(QUICK)

        def read(i):
            offset = (i * 7_919) % 900_000
            return storage.read(f"{url}/f.bin", offset, 20_000) == DATA[offset : offset + 20_000]

        assert all(pool.map(read, range(200)))
    # (aiohttp itself asks again where a connection closed before the answer.)
    assert faults.num_dropped > 20 and storage.num_retries >= faults.num_dropped / 4
    assert faults.num_bytes < 300 * 20_000, "ranges only"


def test_a_server_that_is_down_is_an_os_error_after_all_attempts(folder):
    faults = Faults(drop_share=1.0)
    with serving(folder, faults) as url:
        storage = Storage(Retries(attempts=3, timeout_s=5, first_delay_s=0.001))
        with pytest.raises(OSError, match="cannot be read \\(3 attempts\\)"):
            storage.read(f"{url}/f.bin", 0, 1000)
        assert storage.num_retries == 2


def test_a_stalled_connection_is_given_up(folder):
    with serving(folder, Faults(latency_s=5)) as url:
        storage = Storage(Retries(attempts=2, timeout_s=0.1, first_delay_s=0.001))
        with pytest.raises(OSError, match="2 attempts.*[Tt]imeout"):
            storage.read(f"{url}/f.bin", 0, 1000)


def test_pauses_grow(folder, monkeypatch):
    pauses = []
    monkeypatch.setattr(storage_module.time, "sleep", pauses.append)
    storage = Storage(Retries(attempts=8, first_delay_s=1.0))
    monkeypatch.setattr(storage_module, "remote_filesystem", lambda path: (_Broken(), path))
    with pytest.raises(OSError, match="8 attempts"):
        storage.read("x://y", 0, 1)
    assert len(pauses) == 7 and all(0.5 * 2**k <= pause <= 30 for k, pause in enumerate(pauses[:5]))
    assert pauses[-1] == 30


class _Broken:
    def cat_file(self, *_, **__):
        raise RuntimeError("broken")


def test_unknown_stores_are_a_clear_error():
    with pytest.raises(UserError, match="nonsense"):
        Storage(QUICK).read("nonsense://x/y", 0, 1)
