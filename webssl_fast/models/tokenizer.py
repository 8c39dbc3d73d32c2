"""Texts to byte pairs, for the text tower of CLIP and SigLIP.

Dimensions: B texts, N tokens.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from webssl_fast.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_VOCABULARY_PACKAGE, _VOCABULARY_FILE = "open_clip", "bpe_simple_vocab_16e6.txt.gz"
_NUM_TOKENS = 49_408  # 256 bytes, 256 bytes at a word's end, 48,894 merges, start and end of a text
# Contractions, words, digits one by one, runs of anything else.
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_INSTALL_HF = "pip install 'webssl_fast[hf]'"
_INSTALL_VOCABULARY = "pip install --no-deps open-clip-torch"


class TextTokenizer:
    """`tokenizer(texts)`: start, byte pairs, end, then zeros. A pure function of each text; safe on any thread."""

    def __init__(self, tokenizer: Tokenizer, start_id: int, end_id: int, context_length: int):
        self._tokenizer, self.start_id, self.end_id = tokenizer, start_id, end_id
        self._context_length = context_length
        self.vocabulary_size: int = tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """int64 [B, N], N the context length, and int64 [B]: the tokens of each text, start and end among them. What is
        longer than the context is cut, its end kept."""
        tokens_BN = torch.zeros(len(texts), self._context_length, dtype=torch.int64)
        num_tokens_B = torch.empty(len(texts), dtype=torch.int64)
        for row, text in enumerate(texts):
            # Web captions are HTML, at times escaped twice.
            ids = self._tokenizer.encode(html.unescape(html.unescape(text)).strip(), add_special_tokens=False).ids
            ids = [self.start_id, *ids[: self._context_length - 2], self.end_id]
            tokens_BN[row, : len(ids)] = torch.tensor(ids)
            num_tokens_B[row] = len(ids)
        return tokens_BN, num_tokens_B

    def hugging_face_files(self) -> dict[str, dict]:
        """tokenizer.json and tokenizer_config.json for transformers' AutoTokenizer, which gives the same tokens where a
        text holds no HTML to unescape, and pads with the end's token."""
        from tokenizers import Tokenizer, processors

        tokenizer = Tokenizer.from_str(self._tokenizer.to_str())
        start, end = (tokenizer.id_to_token(token_id) for token_id in (self.start_id, self.end_id))
        tokenizer.add_special_tokens([start, end])
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}", special_tokens=[(start, self.start_id), (end, self.end_id)]
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": end,
            "unk_token": end,
            "pad_token": end,
            "model_max_length": self._context_length,
        }
        return {"tokenizer.json": json.loads(tokenizer.to_str()), "tokenizer_config.json": config}


def load_tokenizer(source: str, context_length: int) -> TextTokenizer:
    """A tokenizer of transformers, from a folder or hub id; with "", CLIP's (49,408 byte pairs, lower case).

    Raises ConfigError where a package, the vocabulary or the tokenizer is missing, or it marks no start and end.
    """
    try:
        import tokenizers  # noqa: F401
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            f"texts are tokenised by transformers, which does not import ({error}): {_INSTALL_HF}"
        ) from error
    if not source:
        tokenizer = clip_byte_pairs(_vocabulary_path())
        return TextTokenizer(tokenizer, _NUM_TOKENS - 2, _NUM_TOKENS - 1, context_length)
    try:
        loaded = AutoTokenizer.from_pretrained(str(Path(source).expanduser()), trust_remote_code=False)
        backend = loaded.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"method.text.tokenizer is {source!r}, and no tokenizer can be loaded from there: {error}\nIt must be a "
            "folder or hub id with a tokenizer.json, or empty for CLIP's"
        ) from error
    start_id = loaded.bos_token_id if loaded.bos_token_id is not None else loaded.cls_token_id
    end_id = loaded.eos_token_id if loaded.eos_token_id is not None else loaded.sep_token_id
    if start_id is None or end_id is None:
        raise ConfigError(
            f"method.text.tokenizer {source!r} has no tokens for a text's start (bos or cls) and end (eos or sep)"
        )
    backend.no_truncation()
    backend.no_padding()
    return TextTokenizer(backend, start_id, end_id, context_length)


def clip_byte_pairs(vocabulary: Path) -> Tokenizer:
    """CLIP's byte-pair encoding (arXiv 2103.00020, section 2.4) from its list of merges, most frequent first."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    with gzip.open(vocabulary, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    characters = _byte_characters()
    num_merges = _NUM_TOKENS - 2 * len(characters) - 2
    # The file opens with a line about its version, and goes on after the merges that CLIP took.
    merges = [(first, second) for first, second in (line.split() for line in lines[1 : 1 + num_merges])]
    tokens = [*characters, *(f"{character}</w>" for character in characters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    model = models.BPE({token: i for i, token in enumerate(tokens)}, merges, end_of_word_suffix="</w>")
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_characters() -> list[str]:
    """A visible character for each byte, in CLIP's order: printable bytes of Latin-1 as they are, then the others."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(num_others)]


def _vocabulary_path() -> Path:
    """Where OpenCLIP's package carries CLIP's merges. Nothing of it is imported: it would import torchvision."""
    spec = importlib.util.find_spec(_VOCABULARY_PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    path = Path(folders[0]) / _VOCABULARY_FILE if folders else None
    if path is None or not path.is_file():
        raise ConfigError(
            f"method.text.tokenizer is empty, which means CLIP's byte pairs; their list {_VOCABULARY_FILE} comes with "
            f"the package open-clip-torch, which is not installed: {_INSTALL_VOCABULARY}. Or name a tokenizer of "
            "transformers, a folder or hub id"
        )
    return path
