"""From settings to a runtime: what contradicts itself is refused before anything starts."""

import numpy as np
import pytest

import store
from jobs.config import Ingest
from jobs.errors import UsageError
from jobs.runtimes.choose import begun_with, chosen
from jobs.runtimes.in_process import InProcess
from jobs.runtimes.ray import Ray
from jobs.runtimes.shards import Shards

REFUSED = {
    "an unknown runtime": ({"runtime": "dask"}, None, "in_process, ray"),
    "a shard under ray": ({"runtime": "ray"}, "0/2", "--shard"),
    "a shard under an address": ({"ray": "auto"}, "0/2", "--shard"),
    "a shard that is none": ({}, "2/2", "0 ≤ I < N"),
    "a shard of nothing": ({}, "0/0", "0 ≤ I < N"),
    "a shard in words": ({}, "first", "I/N"),
    "no workers": ({"runtime": "ray", "workers": 0}, None, "--workers is 0"),
    "negative threads": ({"threads": -1}, None, "--threads is -1"),
    "workers without ray": ({"workers": 2}, None, "--runtime ray"),
    "resources without ray": ({"resources": "gpu_node=1"}, None, "--runtime ray"),
    "resources that are no number": (
        {"runtime": "ray", "resources": "gpu_node=many"},
        None,
        "NAME=AMOUNT",
    ),
}


@pytest.mark.parametrize(("given", "shard", "says"), REFUSED.values(), ids=list(REFUSED))
def test_what_contradicts_itself_is_refused(given, shard, says):
    with pytest.raises(UsageError, match=says):
        chosen(Ingest(**given), shard=shard)


@pytest.mark.parametrize(
    ("given", "shard", "kind"),
    [
        ({}, None, InProcess),
        ({}, "1/4", Shards),
        ({"runtime": "ray"}, None, Ray),
        ({"ray": "10.0.0.1:6379"}, None, Ray),
    ],
    ids=["usual", "shard", "ray", "address"],
)
def test_settings_choose(given, shard, kind):
    assert isinstance(chosen(Ingest(**given), shard=shard), kind)


def test_a_ray_gets_what_was_said():
    given = {"ray": "h:1", "workers": 3, "threads": 2, "resources": "gpu_node=1,fast"}
    runtime = chosen(Ingest(**given), gpus=1)
    assert (runtime.address, runtime.workers, runtime.threads) == ("h:1", 3, 2)
    assert runtime.resources == {"gpu_node": 1.0, "fast": 1.0}
    assert runtime.gpus == 1


@pytest.fixture
def begun(tmp_path):
    made = store.create(tmp_path / "s", part_rows=256)
    with made.writer("tokens", recipe={}) as writer:
        writer.put([store.TokenSequence(token_ids=np.arange(9))])
        writer.seal()
    made = made.refresh()
    with made.writer(
        "acts", columns={"h": "float32"}, recipe={}, provenance={"threads": 7}
    ) as writer:
        writer.put(made.row_ids(), {"h": np.zeros(9, np.float32)})
    return tmp_path / "s"


def test_a_group_goes_on_with_the_threads_it_began_with(begun):
    assert begun_with(str(begun), "acts") == 7
    place = {"url": str(begun), "group": "acts"}
    assert chosen(Ingest(runtime="ray"), **place).threads == 7
    assert chosen(Ingest(runtime="ray", threads=2), **place).threads == 2


def test_what_is_not_there_yet_has_no_threads(begun, tmp_path):
    assert begun_with(str(begun), "more") is None
    assert begun_with(str(begun), "tokens") is None
    assert begun_with(str(tmp_path / "nothing"), "acts") is None


class Counts:
    """Notes the parts it was given."""

    def run(self, part):
        return part

    def close(self):
        pass


@pytest.mark.parametrize("parts", [range(10), [1, 4, 5, 9], []], ids=["all", "some", "none"])
def test_shards_cover_the_parts_without_overlap_whatever_is_pending(parts):
    shares = [[p for p, _ in Shards(index=i, count=3).map(Counts, list(parts))] for i in range(3)]
    assert sorted(part for share in shares for part in share) == list(parts)
    assert all(part % 3 == i for i, share in enumerate(shares) for part in share)
