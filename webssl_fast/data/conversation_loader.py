"""Batches of conversations for the training loop: tokens, and the images that go with them.

A batch holds in `host`
    token_ids_BT        int64: models.chat.IMAGE_ID where image tokens stand, 0 as padding at the end
    columns_C           int64: the places of token_ids_BT after which the assistant says something, in any of its rows
    targets_BC          int64: what it says there, IGNORED where it says nothing
    images_I3SS         uint8, of the batch's images in their order; or
    image_tokens_IMD    bf16, where they were computed beforehand
    num_targets_a_pass  fp32 scalar: the mean over the passes of the step of this rank's targets
A rank prepares a whole step at once, since the loss is a mean over all targets of the step.

Dimensions: B conversations, T tokens, C columns, I images, M image tokens, S side in pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from webssl_fast.data.bad_samples import BadSampleLog, BadShareLimit
from webssl_fast.data.conversation_images import ImagePlaces
from webssl_fast.data.conversation_order import ConversationOrder
from webssl_fast.data.conversations import BadRecord, Conversation, ConversationIndex, parse_record
from webssl_fast.data.decode import BadImage, Decoder
from webssl_fast.data.order import positions_of
from webssl_fast.data.prefetch import Prefetcher
from webssl_fast.data.read import SampleReader
from webssl_fast.errors import UserError
from webssl_fast.models.chat import IGNORED, IMAGE_ID, ChatFormat, TokenizedChat
from webssl_fast.records import Batch

MAX_ATTEMPTS = 64  # records tried for one position before the data count as unusable


@dataclass(frozen=True)
class Sample:
    chat: TokenizedChat
    image: Tensor | None  # uint8 [3, S, S], or bf16 [M, D]


class ConversationSource:
    """Records as samples; what cannot be used raises BadRecord. Safe to share between threads.

    square        of an image to uint8 [3, S, S]
    image_places  that an image takes in a text
    max_tokens    of a text with its image; longer ones are cut at the end
    """

    def __init__(
        self,
        index: ConversationIndex,
        images: ImagePlaces | None,
        chat: ChatFormat,
        decoder: Decoder,
        square: Callable[[PIL.Image.Image], Tensor],
        *,
        image_places: int,
        max_tokens: int,
    ):
        self.index, self._images, self._chat, self._decoder, self._square = index, images, chat, decoder, square
        self._image_places, self._max_tokens = image_places, max_tokens
        self._reader = SampleReader()
        self.precomputed: Callable[[int], Tensor | None] | None = None

    def sample(self, sample_id: int) -> Sample:
        try:
            line = self._reader.read(self.index.locate(sample_id))
        except OSError as error:
            raise BadRecord(f"cannot be read: {error}") from None
        conversation = parse_record(line)
        return Sample(self._tokenized(conversation), self._image(sample_id, conversation))

    def image(self, sample_id: int) -> Tensor | None:
        """uint8 [3, S, S] of a record, None where it has none."""
        try:
            conversation = parse_record(self._reader.read(self.index.locate(sample_id)))
        except OSError as error:
            raise BadRecord(f"cannot be read: {error}") from None
        return None if conversation.image is None else self._opened(conversation.image)

    def close(self) -> None:
        self._reader.close()

    def _tokenized(self, conversation: Conversation) -> TokenizedChat:
        try:
            chat = self._chat.encode(conversation.turns)
        except (ValueError, TypeError) as error:  # of templates that refuse it, and of text that is no Unicode
            raise BadRecord(f"cannot be tokenised: {error}") from None
        num_images = int(conversation.image is not None)
        if chat.num_images != num_images:
            raise BadRecord(f"the chat template makes {chat.num_images} places for its {num_images} images")
        whole = chat.with_image_tokens(self._image_places)
        cut = whole.cut(self._max_tokens)
        if not cut.is_target[1:].any():
            raise BadRecord(f"the assistant says nothing within {self._max_tokens} tokens")
        if (cut.token_ids == IMAGE_ID).sum() != (whole.token_ids == IMAGE_ID).sum():
            raise BadRecord(f"its image does not lie within {self._max_tokens} tokens")
        return cut

    def _image(self, sample_id: int, conversation: Conversation) -> Tensor | None:
        if conversation.image is None:
            return None
        if self.precomputed is None:
            return self._opened(conversation.image)
        tokens_MD = self.precomputed(sample_id)
        if tokens_MD is None:
            raise BadRecord(f"its image {conversation.image!r} could not be used when features were computed")
        return tokens_MD

    def _opened(self, name: str) -> Tensor:
        if self._images is None:
            raise BadRecord(f"has an image ({name!r}), but data.images is not set")
        try:
            data = self._reader.read(self._images.locate(name))
        except KeyError:
            raise BadRecord(f"its image {name!r} is in none of the shards") from None
        except OSError as error:
            raise BadRecord(f"its image cannot be read: {error}") from None
        decoded = self._decoder.decode([data])[0]
        if isinstance(decoded, BadImage):
            raise BadRecord(f"its image {name!r}: {decoded.reason}")
        return self._square(PIL.Image.fromarray(decoded.numpy()))


class ConversationLoader:
    """The engine's Loader of one rank.

    prefetch_steps  made ahead in the background; 0: made in `batch`, between the steps of training
    num_threads     that read, decode and tokenise
    Raises UserError where the batch sizes do not fit each other, or too many records cannot be used.
    """

    def __init__(
        self,
        source: ConversationSource,
        order: ConversationOrder,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        max_bad_share: float = 0.05,
        min_seen_before_stop: int = 200,
        prefetch_steps: int = 0,
        num_threads: int = 1,
        output_dir: str | None = None,
        pin_memory: bool = False,
    ):
        self.source, self.order = source, order
        self.num_micro_steps = global_batch_size // (world_size * micro_batch_size)
        self._place = (rank, world_size, global_batch_size, micro_batch_size)
        positions_of(0, 0, *self._place)  # checks the sizes
        self._pin_memory = pin_memory
        self.data_wait_seconds = 0.0
        self._log = BadSampleLog(source.index, output_dir)
        self._limit = BadShareLimit(max_bad_share, min_seen_before_stop, self._log.path)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="webssl-conversations")
        self._prefetcher = Prefetcher(self._make_step, lambda step: step + 1, prefetch_steps)
        self._step: tuple[int, list[Batch]] | None = None

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        begin = time.perf_counter()
        if self._step is None or self._step[0] != step:
            self._step = step, self._prefetcher.get(step)
        batch = self._step[1][micro_step]
        self.data_wait_seconds += time.perf_counter() - begin
        self._limit.count(batch.num_images, batch.num_bad)
        return batch

    def close(self) -> None:
        """Ends the threads. Safe to call twice."""
        self._prefetcher.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.source.close()

    def __enter__(self) -> ConversationLoader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _make_step(self, step: int) -> list[Batch]:
        positions = [positions_of(step, micro_step, *self._place) for micro_step in range(self.num_micro_steps)]
        drawn_B = self.order.sample_ids(np.concatenate(positions))
        found = list(self._pool.map(self._usable, np.concatenate(positions).tolist(), drawn_B.tolist()))
        num_targets = sum(int(sample.chat.is_target[1:].sum()) for _, sample in found)
        share = torch.tensor(num_targets / self.num_micro_steps)
        batches, first = [], 0
        for positions_B in positions:
            here = slice(first, first + len(positions_B))
            first = here.stop
            ids_B = np.array([sample_id for sample_id, _ in found[here]], np.int64)
            batch = Batch(
                positions=positions_B,
                sample_ids=ids_B,
                crops=[],
                labels=torch.full((len(ids_B),), -1),
                host={**collate([sample for _, sample in found[here]]), "num_targets_a_pass": share},
                num_bad=int((ids_B != drawn_B[here]).sum()),
            )
            batches.append(batch.pinned() if self._pin_memory else batch)
        return batches

    def _usable(self, position: int, sample_id: int) -> tuple[int, Sample]:
        """The record, or the first usable one of a sequence that its position draws."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                return sample_id, self.source.sample(sample_id)
            except BadRecord as error:
                self._log.add(sample_id, str(error))
                name, reason = self.source.index.name(sample_id), str(error)
                sample_id = int(self.order.replacement_ids(np.array([position]), attempt)[0])
        raise UserError(f"{MAX_ATTEMPTS} records in a row could not be used, the last being {name}: {reason}")


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """What the module says a batch holds, of samples with one target each at least."""
    T = max(len(sample.chat.token_ids) for sample in samples)
    token_ids_BT = np.zeros((len(samples), T), np.int64)
    next_BT = np.full((len(samples), T), IGNORED, np.int64)
    for row, sample in enumerate(samples):
        ids, is_target = sample.chat.token_ids, sample.chat.is_target
        token_ids_BT[row, : len(ids)] = ids
        next_BT[row, : len(ids) - 1] = np.where(is_target[1:], ids[1:], IGNORED)
    columns_C = np.flatnonzero((next_BT != IGNORED).any(axis=0))
    host = {
        "token_ids_BT": torch.from_numpy(token_ids_BT),
        "columns_C": torch.from_numpy(columns_C),
        "targets_BC": torch.from_numpy(np.ascontiguousarray(next_BT[:, columns_C])),
    }
    images = [sample.image for sample in samples if sample.image is not None]
    if images:
        key = "images_I3SS" if images[0].dtype == torch.uint8 else "image_tokens_IMD"
        host[key] = torch.stack(images)
    return host
