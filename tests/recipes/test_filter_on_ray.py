"""`webssl filter` on a Ray cluster: the result of an undisturbed run here, byte for byte, whoever is killed."""

import pytest

pytest.importorskip("ray", reason="pip install 'webssl_fast[ray]' (make nightly does)")

from tests.data.two_machines import TwoMachines
from tests.judges import stand_in
from tests.recipes.filter_run import bytes_of, config_of, write_source
from webssl_fast.data.indexing import build_index
from webssl_fast.recipes.filter import filter_images

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def machines():
    machines = TwoMachines(environment={stand_in.SECONDS_AN_IMAGE: "0.05"})
    yield machines
    machines.cluster.shutdown()


@pytest.mark.parametrize("victim", ["actor", "machine"])
def test_scores_and_subsets_are_the_same_whoever_is_killed(tmp_path, machines, victim):
    machines.mend()
    source = str(tmp_path / "index")
    build_index(write_source(tmp_path / "shards", num_shards=4, num_samples=40), tmp_path / "index")
    filter_images(config_of(source, tmp_path / "here"), stand_in.KIND)
    out = tmp_path / "there"
    config = config_of(source, out, executor=machines.executor.model_dump())
    with machines.killed_at_work(victim, lambda: len(list((out / "parts").glob("*.parquet"))), at_least=3) as struck:
        filter_images(config, stand_in.KIND)
    assert len(struck) == 1 and struck[0] < 30, "killed while there was work, of 40 parts"
    assert bytes_of(out) == bytes_of(tmp_path / "here")
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "here").iterdir()}
