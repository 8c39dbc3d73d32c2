"""Checkpoints of a run: `checkpoints/step_00001000/` with safetensors files, state.json and a manifest of checksums.

A checkpoint is written under another name and renamed when it is complete, so one that carries its name is complete.
Written in the background, from a copy, one is complete some steps later; there is never more than one in the making.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from webssl_fast.engine.distributed import Distributed
from webssl_fast.engine.manifest import (
    MANIFEST,
    damaged_files,
    digest,
    read_manifest,
    sync_folder,
    write_durably,
    write_manifest,
)
from webssl_fast.engine.staging import Staging
from webssl_fast.engine.tensor_files import files_of_rank, read_tensors, write_tensors
from webssl_fast.errors import UserError

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from webssl_fast.methods.base import Method

METHOD_PREFIX = "method."
_STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")
_UNFINISHED = re.compile(r"(saving|removing)_step_\d+")


class CheckpointError(UserError):
    """A checkpoint could not be written, or none could be read."""


class Checkpoints:
    """The checkpoints of one run. Every rank calls every method, at the same step.

    As a context it leaves nothing in the making behind: it ends as `finish` does, and where an error ends it, it waits
    all the same and logs what became of the last save.
    """

    def __init__(
        self,
        folder: Path,
        distributed: Distributed,
        *,
        keep: int,
        keep_every: int | None,
        asynchronous: bool = False,
        timeout_s: float | None = None,
    ):
        """`keep`: the newest so many stay; so do those at multiples of `keep_every`. `asynchronous`: on a thread beside
        training, whose ranks wait at most `timeout_s` for each other (None: a day)."""
        self._folder = folder
        self._distributed = distributed
        self._keep = keep
        self._keep_every = keep_every
        self._writers = distributed  # the ranks, as the thread that writes sees them
        self._thread: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None
        if asynchronous:
            self._writers = distributed.for_another_thread(timeout_s or 86_400)
            self._staging = Staging(distributed.device)
            # A new thread's GPU is the host's first, whatever its process computes on.
            own_gpu = partial(torch.cuda.set_device, distributed.device) if distributed.device.type == "cuda" else None
            self._thread = ThreadPoolExecutor(1, "webssl-checkpoint", initializer=own_gpu)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.finish()
        except Exception as failure:
            if error is None:
                raise
            _log.error("the last save failed too: %s", failure)
        finally:
            if self._thread is not None:
                self._thread.shutdown()
                self._staging.close()

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint and then removes those that retention no longer keeps. Returns its folder.

        Asynchronously, this returns as soon as the previous one is complete and `tensors` are copied. One that fails in
        the background is logged at once, and the next is then waited for: the run goes on if that one succeeds.

        Raises CheckpointError on every rank if one could not write; earlier checkpoints are then as they were.
        """
        if self._thread is None:
            return self._write(step, tensors, state)
        previous = self._outcome()
        self._pending = self._thread.submit(self._write_beside_training, step, self._staging.copy(tensors), state)
        if previous is not None:
            self.finish()
        return self._target(step)

    def finish(self) -> None:
        """Waits until nothing is in the making. Raises CheckpointError if the last save failed."""
        failure = self._outcome()
        if failure is not None:
            raise failure

    def load_newest(
        self, tensors: Mapping[str, Tensor], check: Callable[[dict[str, Any]], None] = lambda state: None
    ) -> dict[str, Any] | None:
        """Reads the newest intact checkpoint into `tensors` and returns its state; None where there is none at all.

        `check` sees the state before anything is read, and may raise. Damaged checkpoints that are newer are set aside
        under a name that ends in `.damaged`, loudly. Raises CheckpointError if all are damaged, and TensorMismatch,
        with `tensors` as they were, if it is of another architecture.
        """
        candidates = self._distributed.gather(_complete(self._folder))[0]
        damaged: list[tuple[Path, str]] = []
        for folder in candidates:
            fault = _fault(folder, self._distributed)
            if fault is None:
                break
            damaged.append((folder, fault))
        else:
            if damaged:
                raise CheckpointError(
                    f"every checkpoint in {self._folder} is damaged: {'; '.join(f for _, f in damaged)}. Restore one "
                    "from a copy, or remove them to start the run anew"
                )
            return None
        state = read_state(folder)
        check(state)
        read_tensors(folder, tensors, self._distributed)
        self._distributed.barrier()
        if self._distributed.is_main:
            for path in self._folder.glob("saving_*"):
                _log.warning("%s is what a process left that ended while it saved; it is not used", path)
        for path, fault in damaged:
            if self._distributed.is_main:
                _log.error("DAMAGED CHECKPOINT set aside, the run goes back to %s: %s", folder.name, fault)
                _remove(path.with_name(path.name + ".damaged"))
                path.rename(path.with_name(path.name + ".damaged"))
        return state

    def _outcome(self) -> CheckpointError | None:
        """Waits for the save in the making; what became of it."""
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except CheckpointError as failure:
            return failure
        return None

    def _write_beside_training(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        try:
            return self._write(step, tensors, state)
        except CheckpointError as failure:
            if self._distributed.is_main:
                _log.error("STEP %d IS NOT SAVED, and the next checkpoint must succeed: %s", step, failure)
            raise

    def _target(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"

    def _write(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        target = self._target(step)
        unfinished = self._folder / f"saving_{target.name}"
        try:
            self._together(lambda: self._begin(unfinished))
            self._together(lambda: write_tensors(unfinished, tensors, self._writers))
            mine = self._together(lambda: {p.name: digest(p) for p in files_of_rank(unfinished, self._writers.rank)})
            digests = {name: value for of_rank in self._writers.gather(mine) for name, value in of_rank.items()}
            self._together(lambda: self._finish(unfinished, target, digests, state))
        except OSError as error:
            if self._distributed.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)
            left = _complete(self._folder)
            newest = f"the last complete one is {left[0]}" if left else "there is no earlier one"
            raise CheckpointError(
                f"could not save a checkpoint in {self._folder}: {error}; {newest}. Make room (fewer "
                "train.keep_checkpoints, a larger train.keep_every) and start again: the run resumes by itself"
            ) from error
        if self._distributed.is_main:
            self._retain()
        return target

    def _together(self, action: Callable[[], Any]) -> Any:
        """Runs `action` on every rank, and raises OSError on every rank if it failed on one."""
        error: OSError | None = None
        result = None
        try:
            result = action()
        except OSError as caught:
            error = caught
        failures = [text for text in self._writers.gather(str(error) if error else None) if text]
        if failures:
            raise error or OSError(failures[0])
        return result

    def _begin(self, unfinished: Path) -> None:
        if self._distributed.is_main:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in self._folder.iterdir():
                if _UNFINISHED.fullmatch(path.name):  # what a killed process left
                    _remove(path)
            self._retain()  # makes room where a full disk ended the run and fewer are now to be kept
            unfinished.mkdir()

    def _finish(self, unfinished: Path, target: Path, digests: dict[str, str], state: Mapping[str, Any]) -> None:
        if not self._distributed.is_main:
            return
        write_durably(unfinished / _STATE, json.dumps(state, indent=1))
        digests[_STATE] = digest(unfinished / _STATE)
        write_manifest(unfinished, digests)
        sync_folder(unfinished)
        if target.exists():
            target.rename(target.with_name(f"removing_{target.name}"))
        unfinished.rename(target)
        sync_folder(self._folder)

    def _retain(self) -> None:
        for folder in _complete(self._folder)[self._keep :]:
            step = int(_NAME.fullmatch(folder.name)[1])  # type: ignore[index]
            if self._keep_every is None or step % self._keep_every:
                doomed = folder.with_name(f"removing_{folder.name}")
                folder.rename(doomed)  # first, so that one half removed does not look complete
                _remove(doomed)
        for path in self._folder.glob("removing_*"):
            _remove(path)


def load_weights(
    path: str | Path, module: Method | nn.Module, distributed: Distributed, prefix: str = METHOD_PREFIX
) -> dict[str, Any]:
    """Reads weights of a checkpoint into `module`, in place, and nothing else; returns the checkpoint's state.

    Floats of another precision are rounded to the module's.

    path    a run's output_dir, its `checkpoints` folder, or one checkpoint; of the first two, the newest is read
    module  the method, or with `prefix` a part of it

    Raises FileNotFoundError where no checkpoint is, CheckpointError if it is damaged, and TensorMismatch, with `module`
    as it was, if it is of another architecture.
    """
    assert isinstance(module, nn.Module)
    folder = find_checkpoint(path)
    _refuse_damage(folder, distributed)
    tensors = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    read_tensors(folder, tensors, distributed, prefix=prefix, any_float=True)
    return read_state(folder)


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint that `path` means (see load_weights). Raises FileNotFoundError."""
    path = Path(path)
    if (path / MANIFEST).exists():
        return path
    for folder in (path / "checkpoints", path):
        if complete := _complete(folder):
            return complete[0]
    raise FileNotFoundError(
        f"no checkpoint at {path}; name a run's output_dir, its checkpoints folder, or a folder like step_00001000"
    )


def _complete(folder: Path) -> list[Path]:
    """Complete checkpoints of a folder, the newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")), reverse=True)


def _fault(folder: Path, distributed: Distributed) -> str | None:
    """What is wrong with a checkpoint's files, None if nothing; the ranks share the work of reading them."""
    try:
        files = read_manifest(folder)
        faults = damaged_files(folder, files, sorted(files)[distributed.rank :: distributed.world_size])
    except (OSError, ValueError) as error:
        faults = [str(error)]
    found = [fault for of_rank in distributed.gather(faults) for fault in of_rank]
    return found[0] if found else None


def _refuse_damage(folder: Path, distributed: Distributed) -> None:
    fault = _fault(folder, distributed)
    if fault is not None:
        raise CheckpointError(f"{fault}. Name an earlier checkpoint of the run, or restore this one from a copy")


def read_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint says besides its tensors. Raises CheckpointError."""
    try:
        return json.loads((folder / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / _STATE} cannot be read: {error}") from None


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)
