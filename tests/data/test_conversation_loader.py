"""Batches of conversations: what is in them, for any number of ranks; what becomes of records that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_language import write_tiny_language_model
from webssl_fast.config.schema import DecodeConfig
from webssl_fast.data.conversation_images import open_images
from webssl_fast.data.conversation_loader import ConversationLoader, ConversationSource, Sample, collate
from webssl_fast.data.conversation_order import ConversationOrder
from webssl_fast.data.conversations import BadRecord, ConversationIndex
from webssl_fast.data.decode import make_decoder
from webssl_fast.errors import UserError
from webssl_fast.models.chat import IGNORED, IMAGE_ID, ChatFormat, TokenizedChat
from webssl_fast.models.language import load_tokenizer

G, PLACES = 8, 4


@pytest.fixture(scope="module")
def chat(tmp_path_factory) -> ChatFormat:
    return ChatFormat(load_tokenizer(str(write_tiny_language_model(tmp_path_factory.mktemp("llm")))))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """40 records: every third without an image, numbers 3, 10 and 11 unusable."""
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for i in range(40):
        name = None if i % 3 == 0 else f"{i}.png"
        if name:
            Image.new("RGB", (20, 10), (i, 0, 0)).save(folder / name)
        turns = [{"from": "human", "value": "q" * (1 + i % 7)}, {"from": "gpt", "value": f"no. {i}"}]
        lines.append(json.dumps({"id": i, "image": name, "conversations": turns}))
    lines[3] = "{"
    (folder / "10.png").write_bytes(b"no image")
    (folder / "11.png").unlink()
    (folder / "c.jsonl").write_text("\n".join(lines))
    return folder


def square(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1)


def open_source(data: Path, chat: ChatFormat, max_tokens: int = 64) -> ConversationSource:
    return ConversationSource(
        ConversationIndex.open(str(data / "c.jsonl")),
        open_images(str(data), ""),
        chat,
        make_decoder(DecodeConfig(backend="pillow")),
        square,
        image_places=PLACES,
        max_tokens=max_tokens,
    )


def open_loader(data: Path, chat: ChatFormat, **settings) -> ConversationLoader:
    source = open_source(data, chat)
    index = source.index
    order = ConversationOrder(1, np.arange(len(index)), index.has_image, index.lengths, G)
    settings = {"global_batch_size": G, "micro_batch_size": G, "max_bad_share": 1.0, **settings}
    return ConversationLoader(source, order, **settings)


def answers(batch, chat: ChatFormat) -> list[str]:
    """What the targets say, row by row."""
    return [chat.decode([t for t in row if t != IGNORED]) for row in batch.host["targets_BC"].tolist()]


def test_targets_are_what_the_assistant_says(data, chat):
    with open_loader(data, chat) as loader:
        batch = loader.batch(0)
    assert answers(batch, chat) == [f"no. {i}" for i in batch.sample_ids]
    ids_BT, columns_C = batch.host["token_ids_BT"], batch.host["columns_C"]
    targets_BC = batch.host["targets_BC"]
    said = targets_BC != IGNORED
    inside = columns_C + 1 < ids_BT.shape[1]
    following = ids_BT[:, (columns_C + 1).clamp(max=ids_BT.shape[1] - 1)]
    assert torch.equal(following[:, inside][said[:, inside]], targets_BC[:, inside][said[:, inside]])


def test_images_come_in_the_order_of_their_rows(data, chat):
    with open_loader(data, chat) as loader:
        for step in range(5):
            batch = loader.batch(step)
            with_image = [int(i) for i in batch.sample_ids if i % 3]
            places = (batch.host["token_ids_BT"] == IMAGE_ID).sum(1).tolist()
            assert places == [PLACES * bool(i % 3) for i in batch.sample_ids]
            if with_image:
                assert batch.host["images_I3SS"][:, 0, 0, 0].tolist() == with_image
            else:
                assert "images_I3SS" not in batch.host


def test_any_number_of_ranks_sees_the_same(data, chat):
    def seen(world_size: int, micro: int) -> list[list[int]]:
        steps = [[] for _ in range(4)]
        for rank in range(world_size):
            with open_loader(data, chat, rank=rank, world_size=world_size, micro_batch_size=micro) as loader:
                for step in range(4):
                    for micro_step in range(loader.num_micro_steps):
                        steps[step] += loader.batch(step, micro_step).sample_ids.tolist()
        return [sorted(ids) for ids in steps]

    assert seen(1, 8) == seen(2, 2) == seen(4, 1)


def test_targets_of_a_step_are_counted_over_its_passes(data, chat):
    with open_loader(data, chat, micro_batch_size=2) as loader:
        batches = [loader.batch(1, micro_step) for micro_step in range(4)]
    counted = sum(int((batch.host["targets_BC"] != IGNORED).sum()) for batch in batches)
    assert {float(batch.host["num_targets_a_pass"]) for batch in batches} == {counted / 4}


def test_unusable_records_are_replaced_listed_and_counted(data, chat, tmp_path):
    with open_loader(data, chat, output_dir=str(tmp_path)) as loader:
        batches = [loader.batch(step) for step in range(5)]
        again = [loader.batch(step).sample_ids.tolist() for step in range(5)]
    assert [batch.sample_ids.tolist() for batch in batches] == again
    assert not {3, 10, 11} & {int(i) for batch in batches for i in batch.sample_ids}
    assert sum(batch.num_bad for batch in batches) == 3
    listed = {e["sample_id"]: e["reason"] for e in map(json.loads, (tmp_path / "bad_samples.jsonl").open())}
    assert listed.keys() == {3, 10, 11}
    assert "is not JSON" in listed[3] and "10.png" in listed[10] and "cannot be read" in listed[11]


def test_too_many_unusable_records_stop_the_run(data, chat):
    with open_loader(data, chat, max_bad_share=0.01, min_seen_before_stop=40) as loader:
        with pytest.raises(UserError, match="3 of 40 samples"):
            for step in range(5):
                loader.batch(step)


def test_prefetching_changes_nothing(data, chat):
    with open_loader(data, chat) as plain, open_loader(data, chat, prefetch_steps=2, num_threads=3) as ahead:
        for step in range(6):
            assert torch.equal(plain.batch(step).host["token_ids_BT"], ahead.batch(step).host["token_ids_BT"])


def test_long_conversations_are_cut(data, chat):
    whole = open_source(data, chat).sample(1).chat
    cut = open_source(data, chat, max_tokens=len(whole.token_ids) - 3).sample(1).chat
    assert cut.token_ids.tolist() == whole.token_ids[:-3].tolist()
    with pytest.raises(BadRecord, match="says nothing within 12 tokens"):
        open_source(data, chat, max_tokens=12).sample(1)


def test_images_without_a_place_to_look_are_unusable(data, chat):
    source = open_source(data, chat)
    source._images = None
    with pytest.raises(BadRecord, match="data.images is not set"):
        source.sample(1)
    assert source.sample(0).image is None


def test_tokens_computed_beforehand_stand_in_for_images(data, chat):
    source = open_source(data, chat)
    source.precomputed = lambda i: torch.full((PLACES, 3), float(i), dtype=torch.bfloat16) if i != 2 else None
    host = collate([source.sample(1), source.sample(0), source.sample(4)])
    assert host["image_tokens_IMD"][:, 0, 0].tolist() == [1, 4] and "images_I3SS" not in host
    with pytest.raises(BadRecord, match="when features were computed"):
        source.sample(2)


def test_collated_by_hand():
    first = TokenizedChat(np.array([5, IMAGE_ID, 6, 7, 8]), np.array([0, 0, 0, 1, 1], bool))
    second = TokenizedChat(np.array([5, 9, 7]), np.array([0, 1, 0], bool))
    host = collate([Sample(first, torch.zeros(3, 1, 1, dtype=torch.uint8)), Sample(second, None)])
    assert host["token_ids_BT"].tolist() == [[5, -1, 6, 7, 8], [5, 9, 7, 0, 0]]
    assert host["columns_C"].tolist() == [0, 2, 3]
    assert host["targets_BC"].tolist() == [[IGNORED, 7, 8], [9, IGNORED, IGNORED]]
