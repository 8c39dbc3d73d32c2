"""Conversations as token ids under a tokenizer's chat template, and which of the tokens the assistant says.

A template is rendered turn by turn and the text is tokenised piece by piece, cut where the assistant begins and ends:
so training sees before an answer exactly the tokens that generation is given, and templates that do not mark what the
assistant says (most) serve as well as those that do.

Dimensions: T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from webssl_fast.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE = "<image>"  # where an image stands in a text
IMAGE_ID = -1  # where it stands among token ids
IGNORED = -100  # a target that no loss counts

# The published format of Llama 3's prompts: each turn between headers, ended by <|eot_id|>.
_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
TEMPLATES = {
    "llama_3": (
        "{{ bos_token }}{% for message in messages %}"
        + _HEADER.format("{{ message['role'] }}")
        + "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
        + "{% if add_generation_prompt %}"
        + _HEADER.format("assistant")
        + "{% endif %}"
    )
}


class Turn(NamedTuple):
    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class TokenizedChat:
    """token_ids int64 [T], IMAGE_ID in the place of an image; is_target bool [T]: what the assistant says, the end of
    its turn included."""

    token_ids: np.ndarray
    is_target: np.ndarray

    @property
    def num_images(self) -> int:
        return int((self.token_ids == IMAGE_ID).sum())

    def with_image_tokens(self, num_tokens: int) -> TokenizedChat:
        """Each image as `num_tokens` places, all IMAGE_ID."""
        repeats = np.where(self.token_ids == IMAGE_ID, num_tokens, 1)
        return TokenizedChat(np.repeat(self.token_ids, repeats), np.repeat(self.is_target, repeats))

    def cut(self, max_tokens: int) -> TokenizedChat:
        return TokenizedChat(self.token_ids[:max_tokens], self.is_target[:max_tokens])


class ChatFormat:
    """A tokenizer with its template, and the system prompt that goes before what has none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str = "", system_prompt: str = ""):
        """template: the name of one of TEMPLATES, a file with a Jinja template, or empty: the tokenizer's own.

        Raises ConfigError where there is none, or it does not put the turns one after another.
        """
        self.tokenizer: Any = tokenizer
        self.system_prompt = system_prompt
        self.template = _template(tokenizer, template)
        probe = self.encode([Turn("user", "a"), Turn("assistant", "b")])
        self.end_of_turn_id = int(probe.token_ids[probe.is_target][-1])
        eos = tokenizer.eos_token_id
        eos_ids = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
        self.stop_ids = sorted({self.end_of_turn_id, *eos_ids})

    def encode(self, turns: Sequence[Turn]) -> TokenizedChat:
        """A conversation that the assistant ends. ValueError where the template does not take it."""
        ids: list[int] = []
        is_target: list[bool] = []
        for text, target in self._pieces(turns):
            found = self._token_ids(text)
            ids += found
            is_target += [target] * len(found)
        return TokenizedChat(np.array(ids, np.int64), np.array(is_target, bool))

    def encode_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        """int64 [T] of a conversation that the assistant is to go on with."""
        return np.array(self._token_ids(self._render(self._messages(turns), generation=True)), np.int64)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    def _pieces(self, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """Texts that make up the rendered conversation, and whether the assistant says them."""
        messages = self._messages(turns)
        whole = self._render(messages)
        pieces: list[tuple[str, bool]] = []
        end = 0
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = self._render(messages[:i], generation=True), self._render(messages[: i + 1])
            if not (after.startswith(before) and whole.startswith(after)):
                raise ConfigError(
                    "the chat template writes earlier turns in another way when later ones follow, so what the "
                    "assistant says cannot be told from the rest; set language_model.chat_template to one that does not"
                )
            said = after[len(before) :].rstrip()  # a line break after the end of the turn is not said
            pieces += [(whole[end : len(before)], False), (said, True)]
            end = len(before) + len(said)
        return pieces

    def _messages(self, turns: Sequence[Turn]) -> list[dict[str, str]]:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        if self.system_prompt and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self.system_prompt})
        return messages

    def _render(self, messages: list[dict[str, str]], generation: bool = False) -> str:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                messages, chat_template=self.template, tokenize=False, add_generation_prompt=generation
            )
        except TemplateError as error:
            raise ValueError(f"the chat template does not take this conversation: {error}") from error

    def _token_ids(self, text: str) -> list[int]:
        ids: list[int] = []
        for i, part in enumerate(text.split(IMAGE)):
            ids += [IMAGE_ID] * (i > 0)
            if part:
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
        return ids


def _template(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    if template in TEMPLATES:
        return TEMPLATES[template]
    if template:
        path = Path(template).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"language_model.chat_template is {template!r}, which is neither a file with a Jinja template nor one "
                f"of {', '.join(TEMPLATES)}"
            )
        return path.read_text(encoding="utf-8")
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if not own:
        raise ConfigError(
            "the language model's tokenizer has no chat template, so it is not known how turns are told apart; set "
            f"language_model.chat_template to one of {', '.join(TEMPLATES)} (if its vocabulary has that format's "
            "tokens) or to a file with a Jinja template"
        )
    return str(own)
