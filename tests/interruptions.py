"""A process that ends at a place one can name: after so many changes of the file system."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

CHANGES = ("replace", "unlink", "mkdir", "rmdir")  # functions of os


def interrupted_after(num_changes: int, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Does `work` until it has renamed, removed or made so much, or to its end; what comes after is then not done."""
    num_done = 0

    def counted(function):
        def call(*arguments, **options):
            nonlocal num_done
            if num_done == num_changes:
                raise KeyboardInterrupt
            num_done += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        except KeyboardInterrupt:
            pass
