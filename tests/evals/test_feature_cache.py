"""Features on disk: what was computed once is not computed again, and what changes the features is another place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from webssl_fast.config.schema import ModelConfig
from webssl_fast.errors import UserError
from webssl_fast.evals.feature_cache import FeatureCache, FrozenFeature, encoder_hash, extract_into
from webssl_fast.models.encoders import BackboneEncoder
from webssl_fast.models.vit import VisionTransformer

CLS, MEAN, FIRST = FrozenFeature(1), FrozenFeature(1, "patch_mean"), FrozenFeature(0)
NUM_IMAGES = 150  # three shards of 64 at most


def make_encoder(seed: int = 0, **model) -> BackboneEncoder:
    config = {"preset": "vit_nano_patch14", "image_size_px": 28, "layer_scale_init": 0.3, **model}
    backbone = VisionTransformer(ModelConfig(**config))
    backbone.initialize(seed, "backbone")
    return BackboneEncoder(backbone, "tiny")


def image(sample_id: int) -> torch.Tensor:
    return torch.randn(3, 28, 28, generator=torch.Generator().manual_seed(sample_id))


def batches(ids, size: int = 10, bad=()):
    ids = [i for i in ids if i not in bad]
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield torch.stack([image(i) for i in part]), torch.zeros(len(part)), np.array(part)


def make_cache(folder: Path, **identity) -> FeatureCache:
    return FeatureCache(folder, {"encoder": "x", **identity}, np.arange(NUM_IMAGES) + 7)


def fill(cache: FeatureCache, encoder: BackboneEncoder, features, bad=()) -> None:
    shards = cache.incomplete_shards(features)
    ids = [int(i) for shard in shards for i in cache.shard_ids(shard)]
    extract_into(cache, shards, encoder, features, batches(ids, bad=bad), torch.device("cpu"), final_norm=True)


def test_features_are_those_of_the_encoder(tmp_path: Path):
    cache, encoder = make_cache(tmp_path), make_encoder()
    fill(cache, encoder, [CLS, MEAN, FIRST])
    found, ids = cache.read([FIRST, CLS, MEAN])
    assert ids.tolist() == list(range(7, 7 + NUM_IMAGES))
    with torch.no_grad():
        first, last = encoder.block_features(torch.stack([image(int(i)) for i in ids]), [0, 1])
    torch.testing.assert_close(found[CLS], last.cls_token)
    torch.testing.assert_close(found[MEAN], last.patch_tokens.mean(1))
    torch.testing.assert_close(found[FIRST], first.cls_token)


class Killed(Exception):
    pass


def test_an_interrupted_extraction_goes_on(tmp_path: Path):
    cache, encoder = make_cache(tmp_path), make_encoder()

    def dying():
        for number, batch in enumerate(batches(range(7, 7 + NUM_IMAGES))):
            if number == 9:  # in the middle of the second shard
                raise Killed
            yield batch

    with pytest.raises(Killed):
        extract_into(cache, [0, 1, 2], encoder, [CLS], dying(), torch.device("cpu"), final_norm=True)
    assert cache.incomplete_shards([CLS]) == [1, 2]
    assert not list(cache.folder.rglob("*.partial"))
    fill(cache, encoder, [CLS])
    whole = make_cache(tmp_path / "whole")
    fill(whole, encoder, [CLS])
    assert torch.equal(cache.read([CLS])[0][CLS], whole.read([CLS])[0][CLS])


def test_more_features_are_added_to_those_that_are_there(tmp_path: Path):
    cache, encoder = make_cache(tmp_path), make_encoder()
    fill(cache, encoder, [CLS])
    before = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("block_1_cls/*")}
    assert cache.incomplete_shards([CLS]) == [] and cache.incomplete_shards([CLS, MEAN]) == [0, 1, 2]
    fill(cache, encoder, [CLS, MEAN])
    assert before == {path: path.stat().st_mtime_ns for path in cache.folder.rglob("block_1_cls/*")} and before
    assert cache.incomplete_shards([CLS, MEAN]) == []


def test_undecodable_images_are_left_out_even_whole_shards_of_them(tmp_path: Path):
    cache = make_cache(tmp_path)
    bad = {9, *cache.shard_ids(1).tolist()}
    fill(cache, make_encoder(), [CLS], bad=bad)
    found, ids = cache.read([CLS])
    assert set(range(7, 7 + NUM_IMAGES)) - set(ids.tolist()) == bad and len(found[CLS]) == len(ids)
    assert cache.incomplete_shards([CLS]) == []


def test_another_identity_or_list_of_images_is_another_place(tmp_path: Path):
    folder = make_cache(tmp_path).folder
    assert folder == make_cache(tmp_path).folder
    assert folder != make_cache(tmp_path, precision="bf16").folder
    assert folder != FeatureCache(tmp_path, {"encoder": "x"}, np.arange(NUM_IMAGES)).folder


def test_a_damaged_file_is_named(tmp_path: Path):
    cache = make_cache(tmp_path)
    fill(cache, make_encoder(), [CLS])
    damaged = sorted(cache.folder.rglob("*.safetensors"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-5])
    with pytest.raises(UserError, match="shard_00001.safetensors is damaged.*delete it"):
        cache.read([CLS])
    damaged.unlink()
    with pytest.raises(UserError, match="one folder that all ranks see"):
        cache.read([CLS])


def test_hash_of_an_encoder_is_that_of_what_it_computes():
    encoder = make_encoder()
    first = encoder_hash(encoder)
    renamed = make_encoder()
    renamed.name = "from another place"
    assert encoder_hash(renamed) == first
    assert encoder_hash(make_encoder(seed=1)) != first
    assert encoder_hash(make_encoder(pos_embed_interpolation="size")) != first
    one_bit_off = make_encoder()
    with torch.no_grad():
        weight = one_bit_off.backbone.blocks[1].attn.proj.weight
        weight[0, 3] = torch.nextafter(weight[0, 3], torch.tensor(1.0))
    assert encoder_hash(one_bit_off) != first


def test_hash_takes_every_dtype_and_shape():
    def module(number: int) -> nn.Module:
        made = nn.Module()
        made.register_buffer("scalar", torch.tensor(number, dtype=torch.int64))
        made.register_buffer("bf16", torch.ones(2, 3, dtype=torch.bfloat16).T)
        made.register_buffer("empty", torch.empty(0, 4))
        return made

    assert encoder_hash(module(3)) == encoder_hash(module(3)) != encoder_hash(module(4))
