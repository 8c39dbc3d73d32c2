"""Tensors from and to files that others made or will read. Nothing that a file says is ever executed.

What cannot be read is refused with a UserError that names the file, what was found, and what is expected.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from webssl_fast.errors import UserError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # what transformers has always cut at

_BEGINNINGS = {  # of files that turn up under a name that ends in .pth
    b"<": "an HTML or XML page (a download that was answered with an error or a log-in page?)",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it points to (git lfs pull fetches it)",
    b"PK": "a zip archive that breaks off (an unfinished download?)",
    b"\x80": "a bare pickle, which could run code when read",
    b"\x1f\x8b": "a gzip archive",
    b"{": "a JSON text",
}


def read_pth(path: Path) -> dict[str, Any]:
    """The dictionary in a file of torch.save, its tensors mapped from the disk rather than read.

    Raises UserError for whatever is not one, and for one that holds anything but tensors, numbers and containers.
    """
    if not path.is_file():
        raise UserError(f"no file {path}")
    expected = "expected a zip archive of torch.save with a dictionary of tensors, as the Web-SSL authors publish them"
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is {_describe_beginning(path)}; {expected}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        called = re.search(r"GLOBAL ([\w.]+\w)", str(error))
        what = called[1] if called else "more than tensors"
        raise UserError(f"{path} asks for {what}, so it was not read; nothing in it was executed; {expected}") from None
    except (RuntimeError, ValueError, EOFError, KeyError, OSError, AttributeError) as error:
        raise UserError(f"{path} is a zip archive, but not an intact one of torch.save ({error}); {expected}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; {expected}")
    return content


def write_pth(path: Path, content: dict[str, Any]) -> None:
    """torch.save, under another name until it is complete. A part of a larger tensor is written as that part alone."""
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(_packed(content), unfinished)
    unfinished.rename(path)


def safetensors_files(folder: Path) -> list[Path]:
    """The files of `model.safetensors` in a folder, or of its index, each with an intact header. Raises UserError."""
    index = folder / INDEX
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} cannot be read ({error!r}); expected an index of safetensors files") from None
    else:
        names = [WEIGHTS]
    paths = [folder / Path(name).name for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{folder} has no {path.name}; expected {WEIGHTS}, or {INDEX} and the files that it names")
        with _opened(path):
            pass
    return paths


def read_safetensors_folder(folder: Path) -> dict[str, Tensor]:
    """Every tensor of `safetensors_files`, mapped from the disk."""
    state: dict[str, Tensor] = {}
    for path in safetensors_files(folder):
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                state[name] = file.get_tensor(name)
    return state


def write_safetensors_folder(folder: Path, state: Mapping[str, Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes model.safetensors, or shards of at most `shard_bytes` and their index; a shard at a time in memory."""
    shards: list[list[str]] = []
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if not shards or filled + size > shard_bytes:
            shards, filled = [*shards, []], 0
        shards[-1].append(name)
        filled += size
    file_names = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for file_name, names in zip(file_names, shards, strict=True):
        save_file(_packed({name: state[name] for name in names}), folder / file_name, {"format": "pt"})
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        weight_map = {name: file for file, names in zip(file_names, shards, strict=True) for name in names}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a readable JSON file ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """safe_open that refuses as this module does, when it opens and while it reads."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise UserError(
            f"{path} is no intact safetensors file ({error}): {_describe_beginning(path)}, "
            f"{path.stat().st_size:,} bytes; expected the whole file (an unfinished download?)"
        ) from None


def _describe_beginning(path: Path) -> str:
    with open(path, "rb") as file:
        beginning = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
    if not beginning:
        return "empty"
    for start, description in _BEGINNINGS.items():
        if beginning.startswith(start):
            return description
    return f"a file that begins with {beginning[:16]!r}"


def _packed(content: Any) -> Any:
    """Tensors that own all of their memory: both formats would write what surrounds a view, or refuse it."""
    if isinstance(content, dict):
        return {key: _packed(value) for key, value in content.items()}
    if isinstance(content, Tensor):
        whole = content.untyped_storage().nbytes() == content.numel() * content.element_size()
        return content if whole and content.is_contiguous() else content.clone(memory_format=torch.contiguous_format)
    return content
