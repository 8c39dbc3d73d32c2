"""A frozen encoder, an adapter and a language model that answers questions about images, as Web-SSL judges encoders
(arXiv 2504.01017, App. A; the adapter is that of LLaVA 1.5, arXiv 2310.03744).

Dimensions: B conversations, I images, T tokens, N patches, M image tokens, S side in pixels, D width, C columns of the
logits that are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from webssl_fast.models.chat import IMAGE, IMAGE_ID, ChatFormat, Turn
from webssl_fast.models.encoders import Encoder
from webssl_fast.models.init import normal, uniform
from webssl_fast.models.square_images import normalized, square_image

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AskedQuestion(Protocol):
    """A question as `VisionLanguageModel.answers` takes it; see evals.vqa.question.Question."""

    @property
    def prompt(self) -> str: ...
    @property
    def image(self) -> Callable[[], PIL.Image.Image] | None: ...
    @property
    def max_new_tokens(self) -> int: ...


class Adapter(nn.Module):
    """Image tokens in the language model's space: two linear layers with a GELU between (mlp2x_gelu), and, where it has
    one, a learned token at the end of each row."""

    def __init__(self, vision_width: int, language_width: int, num_image_tokens: int, image_newline: bool = False):
        super().__init__()
        self.side = math.isqrt(num_image_tokens)
        if self.side**2 != num_image_tokens:
            raise ValueError(f"num_image_tokens must be a square, got {num_image_tokens}")
        self.num_places = self.side * (self.side + image_newline)  # of one image in a text
        self.up = nn.Linear(vision_width, language_width)
        self.down = nn.Linear(language_width, language_width)
        self.newline = nn.Parameter(torch.empty(language_width)) if image_newline else None

    def forward(self, tokens_IMD: Tensor) -> Tensor:
        """[I, num_places, language width] of image tokens [I, M, vision width], row by row."""
        x_IMD = self.down(F.gelu(self.up(tokens_IMD)))
        if self.newline is None:
            return x_IMD
        rows_IssD = x_IMD.unflatten(1, (self.side, self.side))
        newline_Is1D = self.newline.to(x_IMD.dtype).expand(len(x_IMD), self.side, 1, -1)
        return torch.cat([rows_IssD, newline_Is1D], dim=2).flatten(1, 2)

    def initialize(self, seed: int, prefix: str) -> None:
        """As torch initialises linear layers: uniform in +-1/sqrt(inputs); the newline token with 1/sqrt(width)."""
        for name, p in self.named_parameters():
            if name == "newline":
                normal(p, (seed, f"{prefix}.{name}"), std=len(p) ** -0.5)
            else:
                layer: Any = self.get_submodule(name.rpartition(".")[0])
                uniform(p, (seed, f"{prefix}.{name}"), bound=layer.in_features**-0.5)


class LanguageSide(nn.Module):
    """The language model with images among its tokens. (A module of its own, for FSDP2 to gather embeddings and logits
    at once: the model's own forward begins after the embeddings are looked up.)"""

    def __init__(self, llm: PreTrainedModel):
        super().__init__()
        self.llm: Any = llm.eval()  # drops nothing at random: a step is a function of its batch
        self.register_state_dict_post_hook(_leave_out_frozen)  # a checkpoint holds what is trained

    @property
    def width(self) -> int:
        return self.llm.get_input_embeddings().embedding_dim

    def decoder_layers(self) -> nn.ModuleList:
        """The repeated blocks: the outermost list of modules."""
        return next(module for module in self.llm.modules() if isinstance(module, nn.ModuleList))

    def forward(self, token_ids_BT: Tensor, image_IMD: Tensor, columns_C: Tensor) -> Tensor:
        """Logits [B, C, vocabulary] of what follows the tokens in `columns_C`.

        token_ids_BT  int64, IMAGE_ID where image tokens stand; padding, whatever it is, comes last, and no token sees
                      what comes after it
        image_IMD     of the images that there are, in their order; those left over have no effect, and at least one is
                      there, so that every rank runs the same modules
        """
        x_BTD = self.embed(token_ids_BT, image_IMD)
        return self.llm(inputs_embeds=x_BTD, use_cache=False, logits_to_keep=columns_C).logits

    def embed(self, token_ids_BT: Tensor, image_IMD: Tensor) -> Tensor:
        x_BTD = self.llm.get_input_embeddings()(token_ids_BT.clamp(min=0))
        return x_BTD.masked_scatter((token_ids_BT == IMAGE_ID)[..., None], image_IMD.to(x_BTD.dtype))


def _leave_out_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
    """Tied weights stay under one name, since safetensors holds a tensor once."""
    kept = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name, _ in module.named_parameters(remove_duplicate=False):
        if name not in kept:
            state.pop(prefix + name, None)


def resize_tokens(tokens_IND: Tensor, num_tokens: int) -> Tensor:
    """Patch tokens of a square grid on another square grid: bilinear, in fp32, corners not aligned; [I, M, D].

    Raises ValueError where N or M is no square.
    """
    I, N, D = tokens_IND.shape  # noqa: E741
    here, there = math.isqrt(N), math.isqrt(num_tokens)
    if here**2 != N or there**2 != num_tokens:
        raise ValueError(f"{N} patches to {num_tokens} image tokens: both must be squares")
    grid_IDhw = tokens_IND.float().transpose(1, 2).reshape(I, D, here, here)
    if here != there:
        grid_IDhw = F.interpolate(grid_IDhw, size=(there, there), mode="bilinear", align_corners=False)
    return grid_IDhw.flatten(2).transpose(1, 2)


@torch.no_grad()
def image_tokens(encoder: Encoder, images_I3SS: Tensor, num_tokens: int) -> Tensor:
    """fp32 [I, M, D] of uint8 square images: the last block's patches after the final norm, resized."""
    return resize_tokens(encoder(normalized(images_I3SS, encoder)).patch_tokens, num_tokens)


class VisionLanguageModel(nn.Module):
    """The whole, to be asked. The encoder is frozen and not among the module's weights."""

    autocast = False  # to bf16, as a training with train.precision=bf16 computes

    def __init__(self, encoder: Encoder, adapter: Adapter, llm: PreTrainedModel, chat: ChatFormat):
        super().__init__()
        self._encoder = (encoder,)  # in a tuple, so that it is no submodule
        self.adapter, self.language, self.chat = adapter, LanguageSide(llm), chat

    @property
    def encoder(self) -> Encoder:
        return self._encoder[0]

    def answers(self, questions: Iterable[AskedQuestion], batch_size: int = 1) -> Iterator[str]:
        """A greedy answer to each question, in order, as they come; `batch_size` questions at once."""
        for limit, group in groupby(questions, key=lambda question: question.max_new_tokens):
            while batch := list(islice(group, batch_size)):
                yield from self._answer(batch, limit)

    @torch.inference_mode()
    def _answer(self, questions: Sequence[AskedQuestion], max_new_tokens: int) -> list[str]:
        device = self.adapter.up.weight.device
        prompts = [self._prompt_ids(question) for question in questions]
        T = max(map(len, prompts))
        ids_BT, mask_BT = np.zeros((len(prompts), T), np.int64), np.zeros((len(prompts), T), np.int64)
        for row, prompt in enumerate(prompts):  # padding on the left, so that all go on at the same place
            ids_BT[row, T - len(prompt) :], mask_BT[row, T - len(prompt) :] = prompt, 1
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            image_IMD = self.adapter(self._image_tokens(questions, device))
            generated = self.language.llm.generate(
                inputs_embeds=self.language.embed(torch.from_numpy(ids_BT).to(device), image_IMD),
                attention_mask=torch.from_numpy(mask_BT).to(device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,  # of sampling, which models' own settings speak of and greedy search warns about
                top_p=None,
                top_k=None,
                eos_token_id=self._stop_ids(),
                pad_token_id=self.chat.end_of_turn_id,
            )
        return [self.chat.decode(ids) for ids in generated.tolist()]

    def _image_tokens(self, questions: Sequence[AskedQuestion], device: torch.device) -> Tensor:
        num_tokens = self.adapter.side**2
        opened = [question.image() for question in questions if question.image is not None]
        if not opened:
            return torch.zeros(1, num_tokens, self.encoder.width, device=device)
        images_I3SS = torch.stack([square_image(image, self.encoder) for image in opened])
        return image_tokens(self.encoder, images_I3SS.to(device), num_tokens)

    def _stop_ids(self) -> list[int]:
        """What ends an answer, by the chat template and by the model's own word."""
        own = self.language.llm.generation_config.eos_token_id
        return sorted({*self.chat.stop_ids, *(own if isinstance(own, list) else [] if own is None else [own])})

    def _prompt_ids(self, question: AskedQuestion) -> np.ndarray:
        text = question.prompt.replace(IMAGE, "")
        if question.image is not None:
            text = f"{IMAGE}\n{text}"
        ids_T = self.chat.encode_prompt([Turn("user", text)])
        return np.repeat(ids_T, np.where(ids_T == IMAGE_ID, self.adapter.num_places, 1))
