"""The CUDA stream of a loader that works on a GPU; nothing for a loader on the host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class DeviceStream:
    """Keeps decoding and cropping off the stream of training, so that they run beside it.

    device  where the images are
    """

    def __init__(self, device: torch.device):
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is enqueued inside has run by the end: results are complete, and what they were made from may go.

        Only the calling thread waits.
        """
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def hand_over(self, tensors: Sequence[Tensor]) -> None:
        """To the calling thread's current stream: their memory is not used again before that has read them."""
        if self._stream is not None:
            for tensor in tensors:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
