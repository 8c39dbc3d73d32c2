"""Decoding on a GPU: what it asks of nvImageCodec, with a stand-in that decodes on the host, and the real one."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.data.image_files import encode, exif, picture, write_folder
from tests.data.test_decode import BAD, GOOD, by_pillow
from tests.data.test_pipeline import RECIPES, assert_equal
from webssl_fast.config.schema import DataConfig, DecodeConfig
from webssl_fast.data import pipeline
from webssl_fast.data.decode import BadImage, make_decoder
from webssl_fast.data.device_stream import DeviceStream
from webssl_fast.data.index import Index
from webssl_fast.data.pipeline import EvalLoader, TrainLoader
from webssl_fast.errors import ConfigError, UserError
from webssl_fast.records import Preprocessing

nvimgcodec = pytest.importorskip("nvidia.nvimgcodec")

ON_GPU = DecodeConfig(device="gpu")
FILES = {f"{i}.jpg": encode(picture(40 + i, 60, seed=i)) for i in range(12)}
FILES |= {"bad.jpg": BAD["jpeg half"], "gif.gif": GOOD["gif"], "none.png": b""}


class StandIn:
    """nvImageCodec that takes the arguments of a GPU decoder and decodes on the host."""

    def __init__(self, **options):
        self.options, self.streams, self.batch_sizes = options, [], []
        backends = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
        self._decoder = nvimgcodec.Decoder(device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY, backends=backends)

    def decode(self, code_streams, params, cuda_stream):
        self.streams.append(cuda_stream)
        self.batch_sizes.append(len(code_streams))
        return [None if x is None else np.array(x) for x in self._decoder.decode(code_streams, params=params)]


@pytest.fixture
def gpu_on_host(monkeypatch):
    """Makes a decoder for the fourth GPU of a machine that has none; its images stay on the host."""
    names = {name: getattr(nvimgcodec, name) for name in dir(nvimgcodec) if not name.startswith("_")}
    backend = lambda kind, load_hint=1.0: (kind, load_hint)  # noqa: E731
    stand_in = SimpleNamespace(**names | {"Decoder": StandIn, "Backend": backend})
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", stand_in)
    monkeypatch.setattr(sys.modules["nvidia"], "nvimgcodec", stand_in)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)

    def make(config=ON_GPU, num_threads=5):
        decoder = make_decoder(config, num_threads)
        assert decoder.device == torch.device("cuda", 3) and decoder.whole_batches
        decoder.num_waits = 0

        def wait():
            decoder.num_waits += 1

        stream = SimpleNamespace(cuda_stream=73, synchronize=wait)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
        decoder.device = torch.device("cpu")
        return decoder

    return make


# ---------------------------------------------------------------- without a GPU


def test_without_a_gpu_the_way_out_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="data.decode.device is gpu.*no NVIDIA GPU.*data.decode.device=cpu"):
        make_decoder(ON_GPU)


def test_without_nvimgcodec_there_is_no_silent_fallback(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(UserError, match="pip install 'webssl_fast\\[dali\\]'.*data.decode.device=cpu"):
        make_decoder(ON_GPU)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.65])
def test_what_is_asked_of_the_codec(gpu_on_host, share):
    options = gpu_on_host(DecodeConfig(device="gpu", hardware_share=share))._decoder.options
    hardware = [(nvimgcodec.HW_GPU_ONLY, share)] if share else []
    assert options["backends"] == [*hardware, (nvimgcodec.GPU_ONLY, 1.0), (nvimgcodec.HYBRID_CPU_GPU, 1.0)]
    assert options["device_id"] == 3 and options["max_num_cpu_threads"] == 5


def test_images_come_as_from_the_host(gpu_on_host):
    decoder = gpu_on_host()
    encoded = [*GOOD.values(), *BAD.values()]
    encoded += [encode(picture(), "JPEG", exif=exif(orientation)) for orientation in range(1, 9)]
    expected = make_decoder(DecodeConfig(backend="pillow")).decode(encoded)
    for image, wanted in zip(decoder.decode(encoded), expected, strict=True):
        if isinstance(wanted, BadImage):
            assert isinstance(image, BadImage)
        else:
            assert image.is_contiguous() and torch.equal(image, wanted)
    assert decoder._decoder.streams == [73]
    assert decoder.num_waits == 7, "the copies of turned images are waited for, and nothing else"


def test_a_jpeg_that_ends_early_is_left_to_pillow(gpu_on_host):
    """Also where it carries a thumbnail with an end of its own."""
    thumbnail = encode(picture(8, 8))
    with_thumbnail = GOOD["jpeg"][:2] + b"\xff\xe5" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    with_thumbnail += GOOD["jpeg"][2:]
    decoder = gpu_on_host()
    whole, *rest = decoder.decode([with_thumbnail, with_thumbnail[:-200], BAD["jpeg half"], BAD["jpeg header only"]])
    assert decoder._decoder.batch_sizes == [1] and np.array_equal(whole, by_pillow(GOOD["jpeg"]))
    assert all(isinstance(image, BadImage) for image in rest)


def test_loaders_decode_whole_batches(gpu_on_host, monkeypatch, tmp_path):
    """The same batches as with small chunks on many threads, bad samples included."""
    index = Index.open(str(write_folder(tmp_path, FILES)))
    on_host = DataConfig(decode=DecodeConfig(backend="pillow"), max_bad_share=1.0)
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 8, "num_threads": 3}
    with TrainLoader(index, on_host, RECIPES, **options) as loader:
        expected = [loader.batch(step) for step in range(4)]
    expected_eval = list(EvalLoader(index, on_host, preprocessing=Preprocessing(32, 28), batch_size=6))

    decoder = gpu_on_host()
    monkeypatch.setattr(pipeline, "make_decoder", lambda config, num_threads: decoder)
    config = on_host.model_copy(update={"decode": ON_GPU})
    for prefetch_batches in (0, 2):
        with TrainLoader(index, config, RECIPES, prefetch_batches=prefetch_batches, **options) as loader:
            for step, batch in enumerate(expected):
                assert_equal(loader.batch(step), batch)
    assert max(decoder._decoder.batch_sizes) >= 6  # of 8, some of which are no JPEGs
    batches = list(EvalLoader(index, config, preprocessing=Preprocessing(32, 28), batch_size=6, prefetch_batches=1))
    for batch, wanted in zip(batches, expected_eval, strict=True):
        assert torch.equal(batch.images, wanted.images) and batch.sample_ids.tolist() == wanted.sample_ids.tolist()


def test_a_loader_on_the_host_has_no_stream():
    stream = DeviceStream(torch.device("cpu"))
    with stream.work():
        x = torch.ones(1)
    stream.hand_over([x])


# ---------------------------------------------------------------- with one


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0.0, 0.65, 1.0])
def test_gpu_images_are_those_of_the_host(share):
    decoder = make_decoder(DecodeConfig(device="gpu", hardware_share=share), num_threads=2)
    kinds = [kind for kind in GOOD if kind.startswith(("jpeg", "png", "gif"))]
    for kind, image in zip(kinds, decoder.decode([GOOD[kind] for kind in kinds]), strict=True):
        assert image.is_cuda and image.is_contiguous(), kind
        difference = np.abs(image.cpu().numpy().astype(int) - by_pillow(GOOD[kind]))
        assert difference.mean() <= 1, kind  # another inverse transform, rounded otherwise


@pytest.mark.gpu
@pytest.mark.parametrize("kind", BAD)
def test_gpu_bad_file_fails_alone(kind):
    first, bad, last = make_decoder(ON_GPU).decode([GOOD["jpeg"], BAD[kind], GOOD["png"]])
    assert isinstance(bad, BadImage)
    assert first.is_cuda and np.array_equal(last.cpu(), by_pillow(GOOD["png"]))


@pytest.mark.gpu
def test_gpu_loader_makes_the_crops_of_the_host(tmp_path):
    index = Index.open(str(write_folder(tmp_path, FILES)))
    options = {"seed": 3, "global_batch_size": 8, "micro_batch_size": 8, "num_threads": 3}
    with TrainLoader(index, DataConfig(max_bad_share=1.0), RECIPES, **options) as loader:
        expected = [loader.batch(step) for step in range(6)]
    config = DataConfig(decode=ON_GPU, max_bad_share=1.0)
    with TrainLoader(index, config, RECIPES, prefetch_batches=3, **options) as loader:
        for step, wanted in enumerate(expected):
            batch = loader.batch(step).to(torch.device("cuda"))
            assert batch.sample_ids.tolist() == wanted.sample_ids.tolist()
            for crops, wanted_crops in zip(batch.crops, wanted.crops, strict=True):
                assert crops.is_cuda
                assert (crops.cpu() - wanted_crops).abs().mean() <= 0.02  # normalised: 1/255 is 0.017
