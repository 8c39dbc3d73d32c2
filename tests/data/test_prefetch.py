import threading
import time

import pytest

from webssl_fast.data.prefetch import Prefetcher


def following(key):
    return key + 1 if key < 20 else None


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_products_come_in_order_and_after_jumps(depth):
    made = []
    prefetcher = Prefetcher(lambda key: made.append(key) or key * 10, following, depth)
    assert [prefetcher.get(key) for key in (0, 1, 2, 7, 8, 2, 3, 20, 20)] == [0, 10, 20, 70, 80, 20, 30, 200, 200]
    prefetcher.close()
    assert max(made) <= 20


def test_work_ahead_is_bounded():
    made = []
    prefetcher = Prefetcher(lambda key: made.append(key) or key, following, 3)
    prefetcher.get(0)
    time.sleep(0.1)
    assert made == [0, 1, 2, 3]
    prefetcher.close()


def test_errors_reach_the_caller_for_their_key():
    def produce(key):
        if key == 2:
            raise ValueError("two")
        return key

    prefetcher = Prefetcher(produce, following, 2)
    assert [prefetcher.get(0), prefetcher.get(1)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        prefetcher.get(2)
    assert prefetcher.get(3) == 3
    prefetcher.close()


def test_close_ends_the_thread_without_beginning_more():
    gate, made = threading.Event(), []

    def produce(key):
        made.append(key)
        if key == 1:
            gate.wait(5)
        return key

    prefetcher = Prefetcher(produce, following, 4)
    prefetcher.get(0)
    threading.Timer(0.05, gate.set).start()
    prefetcher.close()
    prefetcher.close()
    assert made in ([0], [0, 1])
    assert not [t for t in threading.enumerate() if t.name.startswith("webssl-prefetch")]
