import json
import time
from dataclasses import dataclass

import pytest

from tests.engine.toy_run import run_toy
from webssl_fast.engine.data_wait import DataWait


@dataclass
class Ranks:
    """Ranks of which this one is the first; the others' loaders have made them wait `others` seconds so far."""

    others: list[float]
    is_main = True

    @property
    def world_size(self):
        return 1 + len(self.others)

    def gather(self, value):
        return [value, *self.others]


def test_the_slowest_rank_of_each_reading_counts():
    ranks = Ranks([0.5, 0.0])
    wait = DataWait(ranks)
    assert wait.read(0.25) == 0.5
    ranks.others = [0.75, 2.0]
    assert wait.read(0.375) == 2.5
    ranks.others = [0.75, 2.0]
    assert wait.read(1.375) == 3.5


def test_a_slow_loader_is_named_once_with_the_way_out(caplog):
    ranks = Ranks([0.0])
    wait = DataWait(ranks)
    for step, share in enumerate([0.9, 0.1, 0.3, 0.4, 0.5, 0.0, 0.3]):
        ranks.others = [float(step)]
        wait.read(0.0)
        wait.judge(step, share)
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("SLOW LOADER: at step 3, rank 1 waited for data 40% of the time")
    assert "data.num_threads" in message and "data.prefetch_batches" in message


@pytest.mark.parametrize("slow", [False, True])
def test_a_run_with_a_slow_loader_says_so(tmp_path, caplog, slow):
    from tests.engine.toy_method import ToyLoader

    class SlowLoader(ToyLoader):
        def batch(self, step, micro_step):
            begin = time.perf_counter()
            time.sleep(0.02 * slow)
            batch = super().batch(step, micro_step)
            self.data_wait_seconds += (time.perf_counter() - begin) * slow
            return batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.engine.toy_run.ToyLoader", SlowLoader)
        run_toy(tmp_path, train_settings={"num_steps": 8, "log_every": 2})
    assert ("SLOW LOADER" in caplog.text) is slow
    shares = [json.loads(line)["data_wait_share"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all((share > 0.2) is slow for share in shares)
