"""JPEG, PNG, WebP, TIFF, GIF, ... bytes to uint8 RGB, one image failing by itself.

nvImageCodec decodes JPEGs, which web images mostly are; Pillow decodes everything else, and what nvImageCodec cannot.
(It reads PNG and WebP as well, at most a fifth faster than Pillow; but damaged TIFF and JPEG 2000 files make it write
outside its buffers, and damaged PNGs take seconds.) The pixel limit is checked on the header, before anything is
allocated. Alpha is dropped, colour profiles are ignored, 16-bit samples lose their low byte, of an animation the first
frame counts. (`apply_exif_orientation: false` does not reach TIFFs: Pillow always turns them.)

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
from webssl_fast.errors import UserError

logger = logging.getLogger(__name__)

_INSTALL = "pip install 'webssl_fast[dali]'"

_JPEG_START = b"\xff\xd8"
_ORIENTATION_TAG = 0x112
_ORIENTATION_SIGNS = (b"Exif", b"tiff:Orientation")  # EXIF, XMP


@dataclass(frozen=True)
class BadImage:
    """What stands in the place of an image that could not be decoded."""

    reason: str


class Decoder(Protocol):
    """Thread-safe; decodes on the calling thread."""

    name: str

    def decode(self, encoded: Sequence[bytes]) -> list[Tensor | BadImage]:
        """uint8 [H, W, 3] for each image (contiguous, on the CPU), or the reason why there is none."""
        ...


def make_decoder(config: DecodeConfig) -> Decoder:
    """The decoder that the config asks for.

    `backend: auto` takes nvImageCodec, or, with a warning, Pillow where it is not installed.
    Raises UserError for `backend: nvimgcodec` where it is missing, and for `device: gpu`.
    """
    if config.device == "gpu":
        raise UserError(
            "data.decode.device: gpu is not available in this version (images are decoded on the host); "
            "set data.decode.device=cpu"
        )
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
            if not data.startswith(_JPEG_START):
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
            images = self._decoder().decode([stream for _, stream in streams], params=self._params)
            for (i, _), image in zip(streams, images, strict=True):
                if image is not None:
                    results[i] = self._turned(np.asarray(image), encoded[i])
        return [self._by_pillow(data) if r is None else r for data, r in zip(encoded, results, strict=True)]

    def _turned(self, image_HW3: np.ndarray, data: bytes) -> Tensor:
        if self._config.apply_exif_orientation and any(sign in data for sign in _ORIENTATION_SIGNS):
            try:
                orientation = Image.open(io.BytesIO(data)).getexif().get(_ORIENTATION_TAG, 1)
            except Exception:  # damaged metadata of a good image
                orientation = 1
            image_HW3 = np.ascontiguousarray(_TURNS.get(orientation, _TURNS[1])(image_HW3))
        return torch.from_numpy(image_HW3)

    def _decoder(self):
        # One decoder with one thread for each thread of ours: 1.4 times as fast as one decoder with a pool of its own.
        if not hasattr(self._thread, "decoder"):
            backends = [self._codec.Backend(self._codec.CPU_ONLY)]
            self._thread.decoder = self._codec.Decoder(
                device_id=self._codec.NVIMGCODEC_DEVICE_CPU_ONLY, max_num_cpu_threads=1, backends=backends
            )
        return self._thread.decoder

    def _by_pillow(self, data: bytes) -> Tensor | BadImage:
        image, kind = self._pillow.decode_one(data)
        if isinstance(image, Tensor):
            with self._lock:
                first = kind not in self.num_by_pillow
                self.num_by_pillow[kind] = self.num_by_pillow.get(kind, 0) + 1
            if first:
                logger.warning("Pillow decodes %s images, nvImageCodec does not (said once a kind)", kind)
        return image


# EXIF's orientations (CIPA DC-008, tag 274): how the stored rows and columns become the upright image.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: image[::-1].swapaxes(0, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: image[:, ::-1].swapaxes(0, 1),
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
