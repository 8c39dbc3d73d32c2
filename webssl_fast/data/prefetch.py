"""Work done ahead on background threads, in order and bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Key = TypeVar("Key")
Product = TypeVar("Product")


def map_ahead(
    produce: Callable[[Key], Product], keys: Iterable[Key], num_threads: int, depth: int
) -> Iterator[Product]:
    """`produce(key)` for each key, in their order; `depth` of them are begun on `num_threads` threads ahead of time.

    Where depth is 0 they are produced on the caller's thread, when due. What `produce` raises reaches the caller there.
    """
    if depth == 0:
        yield from map(produce, keys)
        return
    pending: deque[Future[Product]] = deque()
    executor = ThreadPoolExecutor(num_threads, thread_name_prefix="webssl-ahead")
    try:
        for key in keys:
            pending.append(executor.submit(produce, key))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


class Prefetcher(Generic[Key, Product]):
    """`get(key)` gives `produce(key)`; with `depth` > 0 the keys that follow it are produced meanwhile.

    produce    runs on the caller's thread where depth is 0, on one background thread otherwise; what it raises reaches
               the caller of `get` for that key
    following  the key after a key, None after the last
    A `get` out of order is answered as well: what was produced for other keys is dropped.
    """

    def __init__(self, produce: Callable[[Key], Product], following: Callable[[Key], Key | None], depth: int):
        self._produce, self._following, self._depth = produce, following, depth
        self._pending: deque[tuple[Key, Future[Product]]] = deque()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="webssl-prefetch") if depth else None

    def get(self, key: Key) -> Product:
        if self._executor is None:
            return self._produce(key)
        if not self._pending or self._pending[0][0] != key:
            self._drop_pending()
            self._submit(key)
        _, future = self._pending.popleft()
        last: Key | None = self._pending[-1][0] if self._pending else key
        while last is not None and len(self._pending) < self._depth:
            last = self._following(last)
            if last is not None:
                self._submit(last)
        return future.result()

    def close(self) -> None:
        """Ends the thread after the product that it is at; nothing else is begun."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, key: Key) -> None:
        assert self._executor is not None
        self._pending.append((key, self._executor.submit(self._produce, key)))

    def _drop_pending(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()
