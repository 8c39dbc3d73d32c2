"""JPEG, PNG, WebP, TIFF, GIF, ... bytes to uint8 RGB, one image failing by itself.

nvImageCodec decodes JPEGs, which web images mostly are; Pillow decodes everything else, and what nvImageCodec cannot.
(It reads PNG and WebP as well, at most a fifth faster than Pillow; but damaged TIFF and JPEG 2000 files make it write
outside its buffers, and damaged PNGs take seconds.) The pixel limit is checked on the header, before anything is
allocated. Alpha is dropped, colour profiles are ignored, 16-bit samples lose their low byte, of an animation the first
frame counts. (`apply_exif_orientation: false` does not reach TIFFs: Pillow always turns them.)

On a GPU nvImageCodec decodes as well, by its Python API, and not in a DALI pipeline, whose image decoder is the same
library: a pipeline fails a whole batch over one bad image, this gives a result for each. What it decodes stays on the
GPU, what Pillow decodes is copied there.

Dimensions: H rows, W columns.
"""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from webssl_fast.config.schema import DecodeConfig
from webssl_fast.errors import ConfigError, UserError

logger = logging.getLogger(__name__)

_INSTALL = "pip install 'webssl_fast[dali]'"

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_ORIENTATION_TAG = 0x112
_ORIENTATION_SIGNS = (b"Exif", b"tiff:Orientation")  # EXIF, XMP


@dataclass(frozen=True)
class BadImage:
    """What stands in the place of an image that could not be decoded."""

    reason: str


class Decoder(Protocol):
    """Thread-safe."""

    name: str
    device: torch.device  # where the images are
    whole_batches: bool  # `decode` is best called once, with many images; otherwise on many threads, with a few each

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        """uint8 [H, W, 3] for each image (contiguous, on `device`), or the reason why there is none.

        On a GPU the images are ready for the current stream, and must live until that has read them.
        """
        ...


def make_decoder(config: DecodeConfig, num_threads: int = 1) -> Decoder:
    """The decoder that the config asks for; `device: gpu` means the current one, and uses `num_threads` host threads.

    `device: cpu` with `backend: auto` takes nvImageCodec, or, with a warning, Pillow where it is not installed.
    Raises ConfigError for `device: gpu` where there is none, UserError where nvImageCodec is asked for and missing.
    """
    if config.device == "gpu":
        if not torch.cuda.is_available():
            raise ConfigError(
                "data.decode.device is gpu, but torch finds no NVIDIA GPU here (torch.cuda.is_available() is false): "
                "set data.decode.device=cpu"
            )
        try:
            return NvImageCodecGpuDecoder(config, num_threads)
        except ImportError as error:
            raise UserError(
                f"data.decode.device: gpu needs nvImageCodec, which is not installed ({error}): {_INSTALL}, or set "
                f"data.decode.device=cpu"
            ) from error
    if config.backend == "pillow":
        return PillowDecoder(config)
    try:
        return NvImageCodecDecoder(config)
    except ImportError as error:
        if config.backend == "nvimgcodec":
            raise UserError(
                f"data.decode.backend: nvimgcodec is not installed ({error}): {_INSTALL}, or set "
                f"data.decode.backend=pillow"
            ) from error
        logger.warning(
            "nvImageCodec does not import (%s): decoding with Pillow, about a third slower. For the faster one: %s",
            error,
            _INSTALL,
        )
        return PillowDecoder(config)


class PillowDecoder:
    name = "pillow"
    device = torch.device("cpu")
    whole_batches = False

    def __init__(self, config: DecodeConfig):
        self._config = config
        # Our own limit stands in front; Pillow's must not warn or raise below it.
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, config.max_pixels)

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        return [self.decode_one(data)[0] for data in encoded]

    def decode_one(self, data: bytes) -> tuple[Tensor | BadImage, str]:
        """The image, and its kind ("GIF (P)", format and mode; empty where no format was recognised)."""
        if not data:
            return BadImage("the file is empty"), ""
        kind = ""
        try:
            with Image.open(io.BytesIO(data)) as file:
                kind = f"{file.format} ({file.mode})"
                if too_large := _above_limit(file.height, file.width, self._config):
                    return too_large, kind
                file.load()
                return _to_rgb(ImageOps.exif_transpose(file) if self._config.apply_exif_orientation else file), kind
        except Image.UnidentifiedImageError:
            return BadImage(f"not an image of a known format (it starts with {data[:8]!r})"), kind
        except Exception as error:  # plugins raise all sorts (SyntaxError, struct.error, ...) on damaged files
            return BadImage(f"{type(error).__name__}: {error}"), kind


class NvImageCodecDecoder:
    name = "nvimgcodec"
    device = torch.device("cpu")
    whole_batches = False

    def __init__(self, config: DecodeConfig):
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # it prints each bad image; bad_samples.jsonl lists them
        import nvidia.nvimgcodec as nvimgcodec

        self._codec = nvimgcodec
        self._config = config
        # It can turn images itself, but writes outside its buffer when a turned JPEG is damaged: `_turned` does it.
        self._params = nvimgcodec.DecodeParams(apply_exif_orientation=False, color_spec=nvimgcodec.ColorSpec.SRGB)
        self._pillow = PillowDecoder(config)
        self._thread = threading.local()
        self._lock = threading.Lock()
        self.num_by_pillow: dict[str, int] = {}  # images that Pillow decoded instead, by kind

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        results: list[Tensor | BadImage | None] = [None] * len(encoded)
        streams = []
        for i, data in enumerate(encoded):
            if not self._takes(data):
                continue
            try:
                stream = self._codec.CodeStream(data)
                height, width, num_channels = stream.height, stream.width, stream.num_channels
            except Exception:  # a damaged header (RuntimeError, TypeError): Pillow finds a reason
                continue
            results[i] = _above_limit(height, width, self._config)
            if results[i] is None and num_channels != 4:  # CMYK without Adobe's marker would come out inverted
                streams.append((i, stream))
        if streams:
            images = self._decode_streams([stream for _, stream in streams])
            for (i, _), image in zip(streams, images, strict=True):
                if image is not None:
                    results[i] = self._turned(image, encoded[i])
        return [self._by_pillow(data) if r is None else r for data, r in zip(encoded, results, strict=True)]

    def _takes(self, data: bytes) -> bool:
        return data.startswith(_JPEG_START)

    def _decode_streams(self, streams: list) -> list[Tensor | None]:
        # One decoder with one thread for each thread of ours: 1.4 times as fast as one decoder with a pool of its own.
        if not hasattr(self._thread, "decoder"):
            backends = [self._codec.Backend(self._codec.CPU_ONLY)]
            self._thread.decoder = self._codec.Decoder(
                device_id=self._codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends
            )
        images = self._thread.decoder.decode(streams, params=self._params)
        return [None if image is None else torch.from_numpy(np.asarray(image)) for image in images]

    def _turned(self, image_HW3: Tensor, data: bytes) -> Tensor:
        if self._config.apply_exif_orientation and any(sign in data for sign in _ORIENTATION_SIGNS):
            try:
                orientation = Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION_TAG, 1)
            except Exception:  # damaged metadata of a good image
                orientation = 1
            image_HW3 = _TURNS.get(orientation, _TURNS[1])(image_HW3).contiguous()
        return image_HW3

    def _by_pillow(self, data: bytes) -> Tensor | BadImage:
        image, kind = self._pillow.decode_one(data)
        if isinstance(image, Tensor):
            with self._lock:
                first = kind not in self.num_by_pillow
                self.num_by_pillow[kind] = self.num_by_pillow.get(kind, 0) + 1
            if first:
                logger.warning("Pillow decodes %s images, nvImageCodec does not (said once a kind)", kind)
            return image.to(self.device)
        return image


class NvImageCodecGpuDecoder(NvImageCodecDecoder):
    """On the GPU that is current when it is made. `hardware_share` of a batch goes to the JPEG engine (which reads
    baseline JPEGs only), the rest to CUDA cores, with entropy decoding on the host."""

    whole_batches = True  # a share of one image is none or all, and the engine decodes several at once

    def __init__(self, config: DecodeConfig, num_threads: int):
        super().__init__(config)
        codec = self._codec
        self.device = torch.device("cuda", torch.cuda.current_device())
        backends = [codec.Backend(codec.GPU_ONLY), codec.Backend(codec.HYBRID_CPU_GPU)]
        if config.hardware_share > 0:
            backends.insert(0, codec.Backend(codec.HW_GPU_ONLY, load_hint=config.hardware_share))
        self._decoder = codec.Decoder(
            device_id=self.device.index,
            max_num_cpu_threads=num_threads,
            backends=backends,
            options=":fancy_upsampling=1",  # of chroma, as on the CPU
        )

    def _takes(self, data: bytes) -> bool:
        # Nothing says that the engine reports an image that ends early; Pillow does. (A thumbnail's end comes before
        # the image's first scan, and inside a scan neither marker can occur.)
        return super()._takes(data) and data.rfind(_JPEG_END) > data.rfind(_JPEG_SCAN)

    def _decode_streams(self, streams: list) -> list[Tensor | None]:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        with self._lock:
            images = self._decoder.decode(streams, params=self._params, cuda_stream=stream)
        return [None if image is None else torch.from_dlpack(image) for image in images]

    def _turned(self, image_HW3: Tensor, data: bytes) -> Tensor:
        turned_HW3 = super()._turned(image_HW3, data)
        if turned_HW3 is not image_HW3:  # nvImageCodec may free its memory out of the stream's order: copy it first
            torch.cuda.current_stream(self.device).synchronize()
        return turned_HW3


# EXIF's orientations (CIPA DC-008, tag 274): how the stored rows and columns become the upright image.
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    1: lambda image: image,
    2: lambda image: image.flip(1),
    3: lambda image: image.flip(0, 1),
    4: lambda image: image.flip(0),
    5: lambda image: image.transpose(0, 1),
    6: lambda image: image.flip(0).transpose(0, 1),
    7: lambda image: image.flip(0, 1).transpose(0, 1),
    8: lambda image: image.flip(1).transpose(0, 1),
}


def _above_limit(height: int, width: int, config: DecodeConfig) -> BadImage | None:
    if height * width <= config.max_pixels:
        return None
    return BadImage(
        f"its header claims {width} x {height} = {height * width} pixels, above data.decode.max_pixels = "
        f"{config.max_pixels}"
    )


def _to_rgb(image: Image.Image) -> Tensor | BadImage:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: all that is bright becomes white.
        samples = np.asarray(image)
        if image.mode == "F" or samples.min(initial=0) < 0 or samples.max(initial=0) > 0xFFFF:
            return BadImage(f"samples of mode {image.mode!r} have no defined range; convert the image to 8 or 16 bits")
        return torch.from_numpy(np.repeat((samples >> 8).astype(np.uint8)[:, :, None], 3, axis=2))
    return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB")))
