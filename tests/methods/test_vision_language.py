"""The loss of the vision-language training: a mean over all that the assistant says in a step, however that is shared
out; and what is trained, and saved, in each stage."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from tests.engine.rank_processes import run_ranks
from tests.tiny_language import write_tiny_language_model
from webssl_fast.config.schema import TrainConfig
from webssl_fast.data.conversation_loader import Sample, collate
from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.sharding import materialize
from webssl_fast.methods.vision_language import VisionLanguage
from webssl_fast.models.chat import IMAGE_ID, TokenizedChat
from webssl_fast.models.init import assign
from webssl_fast.models.language import describe_causal_model, load_causal_model
from webssl_fast.models.lora import add_lora, initialize_lora, merged, plain_name
from webssl_fast.models.vision_language import Adapter, LanguageSide
from webssl_fast.records import Batch

HERE = Distributed(torch.device("cpu"))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory) -> Path:
    return write_tiny_language_model(tmp_path_factory.mktemp("llm"))


def make_method(folder: Path, trained: bool = True, ranks: Distributed = HERE, **settings) -> VisionLanguage:
    published = load_causal_model(str(folder), torch.float32)

    def fill(method: VisionLanguage, seed: int) -> None:
        method.adapter.initialize(seed, "adapter")
        method.language.llm.tie_weights()
        tensors = {**dict(published.named_parameters()), **dict(published.named_buffers())}
        for name, target in [*method.language.llm.named_parameters(), *method.language.llm.named_buffers()]:
            if plain_name(name) in tensors:
                assign(target, tensors[plain_name(name)])
        initialize_lora(method.language.llm, seed, "language")

    llm = describe_causal_model(str(folder)).requires_grad_(trained)
    if settings.pop("lora", False):
        with torch.device("meta"):
            llm = add_lora(llm, 2, 4.0)
    with torch.device("meta"):
        adapter = Adapter(6, 32, 4)
    method = VisionLanguage(None, adapter, LanguageSide(llm), fill)
    materialize(method, 0, ranks, TrainConfig(precision="fp32", **settings))
    return method


def samples() -> list[Sample]:
    """Of several lengths, with and without an image."""
    torch.manual_seed(0)
    found = []
    for i, (asked, said) in enumerate([(3, 1), (5, 4), (2, 2), (6, 3), (1, 5), (4, 1), (3, 3), (2, 4)]):
        image = [IMAGE_ID] * 4 if i < 5 else []
        ids = torch.tensor([1, *image, *torch.randint(7, 90, (asked + said,)).tolist()])
        target = torch.zeros(len(ids), dtype=torch.bool)
        target[-said:] = True
        tokens = torch.randn(4, 6).bfloat16() if image else None
        found.append(Sample(TokenizedChat(ids.numpy(), target.numpy()), tokens))
    return found


def batches(num_passes: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """This rank's passes over all samples."""
    whole = samples()
    size = len(whole) // (num_passes * world_size)
    own = [whole[(p * world_size + rank) * size :][:size] for p in range(num_passes)]
    count = sum(int(sample.chat.is_target.sum()) for part in own for sample in part)
    share = torch.tensor(count / num_passes)
    zeros = torch.zeros(size, dtype=torch.int64)
    return [
        Batch(zeros.numpy(), zeros.numpy(), [], zeros, {**collate(part), "num_targets_a_pass": share}) for part in own
    ]


def gradients(method: VisionLanguage, passes: list[Batch]) -> tuple[float, dict[str, np.ndarray]]:
    """Of the mean loss of some passes. (Arrays: a tensor does not outlive the process that sends it.)"""
    total = 0.0
    for batch in passes:
        loss, _ = method.training_step(batch, 0)
        (loss / len(passes)).backward()
        total += float(loss.detach()) / len(passes)
    whole = {}
    for name, p in method.named_parameters():
        if p.grad is not None:
            grad = p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
            whole[name] = grad.numpy()
    return total, whole


def test_the_loss_is_a_mean_over_all_that_is_said(llm_folder):
    method = make_method(llm_folder)
    loss, _ = gradients(method, batches(1))
    llm = load_causal_model(str(llm_folder), torch.float32).double()
    adapter = nn.Module.to(method.adapter, torch.float64)
    log_likelihoods = []
    for sample in samples():
        ids = torch.from_numpy(sample.chat.token_ids)
        x = llm.get_input_embeddings().weight[ids.clamp(min=0)].clone()
        if sample.image is not None:
            x[ids == IMAGE_ID] = adapter(sample.image.double()[None])[0]
        log_p = llm(inputs_embeds=x[None]).logits[0].log_softmax(-1)
        log_likelihoods += [log_p[t - 1, ids[t]] for t in range(len(ids)) if sample.chat.is_target[t]]
    assert loss == pytest.approx(-float(torch.stack(log_likelihoods).mean().detach()), rel=1e-6)


@pytest.mark.parametrize("num_passes", [2, 4, 8])
def test_accumulation_changes_nothing(llm_folder, num_passes):
    loss, grads = gradients(make_method(llm_folder), batches(1))
    parted_loss, parted = gradients(make_method(llm_folder), batches(num_passes))
    assert parted_loss == pytest.approx(loss, rel=1e-6)
    assert grads.keys() == parted.keys()
    for name, grad in grads.items():
        np.testing.assert_allclose(parted[name], grad, rtol=1e-4, atol=1e-6)


SETTINGS: dict[str, dict[str, Any]] = {
    "stage 1": {"trained": False},
    "stage 2": {"trained": True, "activation_checkpointing": "full"},
    "low rank": {"trained": False, "lora": True},
}


def _of_a_rank(ranks: Distributed, folder: Path, names: list[str]) -> dict[str, tuple[float, dict]]:
    own = batches(2, ranks.rank, ranks.world_size)
    return {name: gradients(make_method(folder, ranks=ranks, **SETTINGS[name]), own) for name in names}


def test_ranks_change_nothing(llm_folder):
    """Not all passes of all ranks have an image. The language model's weights are tied."""
    names = [name for name in SETTINGS if name != "low rank" or find_spec("peft")]
    of_ranks = run_ranks(2, _of_a_rank, llm_folder, names)
    for name in names:
        loss, grads = gradients(make_method(llm_folder, **SETTINGS[name]), batches(1))
        assert sum(found[name][0] for found in of_ranks) / 2 == pytest.approx(loss, rel=1e-5)
        found = of_ranks[0][name][1]
        assert grads.keys() == found.keys()
        for parameter, grad in grads.items():
            np.testing.assert_allclose(found[parameter], grad, rtol=1e-4, atol=1e-6)


def test_each_stage_trains_and_saves_its_own(llm_folder):
    adapter_alone, both = make_method(llm_folder, trained=False), make_method(llm_folder)
    assert adapter_alone.trained_modules().keys() == {"adapter"} and both.trained_modules().keys() == {
        "adapter",
        "language",
    }
    assert adapter_alone.state_dict().keys() == {f"adapter.{n}.{k}" for n in ("up", "down") for k in ("weight", "bias")}
    assert both.state_dict().keys() == {name for name, _ in both.named_parameters()}, "tied weights once"


def test_untrained_updates_change_nothing_and_are_merged(llm_folder):
    pytest.importorskip("peft")
    plain, updated = make_method(llm_folder), make_method(llm_folder, trained=False, lora=True)
    trained = [name for name, p in updated.named_parameters() if p.requires_grad]
    assert all("lora_" in name or name.startswith("adapter.") for name in trained) and len(trained) > 4
    assert gradients(updated, batches(1))[0] == pytest.approx(gradients(plain, batches(1))[0], rel=1e-6)
    with torch.no_grad():
        for name, p in updated.language.llm.named_parameters():
            if ".lora_B." in name:
                p.normal_()
    ids = torch.randint(7, 90, (1, 6))
    before = updated.language.llm(input_ids=ids).logits
    torch.testing.assert_close(merged(updated.language.llm)(input_ids=ids).logits, before, rtol=1e-4, atol=1e-4)
