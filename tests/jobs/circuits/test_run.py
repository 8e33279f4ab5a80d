"""``statistics_on``: one read, new parts alone, the same bits anywhere; what cannot be had is refused by name."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

import jobs.sequences
import store
from ingest.contract import SequenceBlock
from ingest.models.facts import ModelFacts
from jobs.circuits import STATISTICS
from jobs.circuits.run import statistics_on
from jobs.errors import JobError
from jobs.results import Result
from store.testing.small import LENGTHS, sequences_of, small_store, tokens_store, values_of

SITES = tuple(f"blocks.{layer}.resid_post" for layer in range(2))
RECIPE = {
    "schema": 1,
    "model": {"family": "toy", "config.json": "0" * 64},
    "sites": list(SITES),
    "dtypes": dict.fromkeys(SITES, "bfloat16"),
    "compute_dtype": "float32",
    "batch": {"sequences": 2, "pad_multiple": 32},
}
MOMENTS = STATISTICS.get("moments")()
MASSIVE = STATISTICS.get("massive_activations")(absolute=0.0, ratio=1.5)


def harvest(made, parts=None, group="acts", sites=SITES):
    """Fill some parts of a group that looks harvested, its facts beside it."""
    shapes = dict.fromkeys(sites, (16,))
    facts = ModelFacts(family="toy", layers=2, width=16, causal=True, shapes=shapes)
    provenance = {"model": made.put_asset(facts.to_files()), "model_name": "toy"}
    columns = dict.fromkeys(sites, "bfloat16[16]")
    writer = made.writer(group, columns=columns, recipe=RECIPE, provenance=provenance)
    for part in made.view.parts("tokens") if parts is None else parts:
        ids = part * made.part_stride + np.arange(made.view.commit("tokens", part).rows)
        writer.put(ids, {name: values_of(ids, c) for name, c in writer.group.columns.items()})
    writer.close()
    return made.refresh()


@pytest.fixture
def made(fresh_url):
    return harvest(tokens_store(fresh_url))


@pytest.fixture
def reads(monkeypatch):
    """Which (part, sites) are read, in order."""
    seen = []
    read = jobs.sequences._part_blocks

    def counted(store, held, part):
        seen.append((part, tuple(held.groups)))
        yield from read(store, held, part)

    monkeypatch.setattr(jobs.sequences, "_part_blocks", counted)
    return seen


def tables(result):
    return {name: result.table(name) for name in result.tables()}


def same(one, other):
    assert one.keys() == other.keys()
    for name, columns in one.items():
        assert columns.keys() == other[name].keys()
        for key, values in columns.items():
            np.testing.assert_array_equal(values, other[name][key], err_msg=f"{name}.{key}")


def direct(made, statistic, batch=2):
    """The tables of one partial over all blocks of part after part, merged from the left."""
    facts = ModelFacts(
        family="toy", layers=2, width=16, causal=True, shapes=dict.fromkeys(SITES, (16,))
    )
    whole = statistic.empty(facts)
    for block in jobs.sequences.sequence_blocks(made, SITES):
        assert isinstance(block, SequenceBlock)
        assert len(block.bounds) <= batch + 1
        one = statistic.empty(facts)
        one.update(block)
        whole = whole.merge(one)
    return whole.finalize()


def test_every_statistic_is_computed_in_one_read_and_leaves_a_result(made, reads, tmp_path):
    results = statistics_on(made, [MOMENTS, MASSIVE], tmp_path)
    parts = list(made.view.parts("acts"))
    assert reads == [(part, SITES) for part in parts]
    for result, statistic in zip(results, (MOMENTS, MASSIVE), strict=True):
        assert result.path.name.startswith("stats-")
        assert result.card.outcome == "done"
        assert result.card.config["statistic"]["kind"] == statistic.kind
        assert result.card.config["statistic"]["version"] == statistic.version
        wanted = direct(made, dataclasses.replace(statistic))
        found = tables(Result.open(result.path))
        assert found.keys() == wanted.keys()
        for name, columns in wanted.items():
            for key, values in columns.items():
                if isinstance(values, list):
                    assert found[name][key] == values
                else:
                    np.testing.assert_allclose(found[name][key], values, rtol=1e-9)


def test_asking_again_reads_nothing(made, reads, tmp_path):
    (first,) = statistics_on(made, [MOMENTS], tmp_path)
    del reads[:]
    (again,) = statistics_on(made.refresh(), [MOMENTS], tmp_path)
    assert (again.path, again.done) == (first.path, True)
    (other,) = statistics_on(made.refresh(), [MOMENTS], tmp_path / "elsewhere")
    same(tables(other), tables(first))
    assert reads == []


def test_a_second_statistic_reads_only_what_it_lacks(made, reads, tmp_path):
    statistics_on(made, [MOMENTS], tmp_path)
    del reads[:]
    statistics_on(made.refresh(), [MOMENTS, MASSIVE], tmp_path)
    assert [sites for _, sites in reads] == [SITES] * len(made.view.parts("acts"))
    del reads[:]
    one = STATISTICS.get("massive_activations")(absolute=0.0, ratio=1.5, layers=(1,))
    statistics_on(made.refresh(), [one], tmp_path)
    assert {sites for _, sites in reads} == {SITES[1:]}


def test_new_parts_cost_only_themselves(fresh_url, memory, reads, tmp_path):
    made = harvest(tokens_store(fresh_url, LENGTHS[:6], seal=False))
    old = list(made.view.parts("acts"))
    (before,) = statistics_on(made, [MOMENTS], tmp_path)
    assert [part for part, _ in reads] == old
    made = harvest(grown(made))
    fresh = [part for part in made.view.parts("acts") if part not in old]
    assert fresh
    del reads[:]
    (after,) = statistics_on(made, [MOMENTS], tmp_path)
    assert [part for part, _ in reads] == fresh
    assert after.path != before.path
    whole = harvest(memory(made))
    (wanted,) = statistics_on(whole, [MOMENTS], tmp_path / "whole")
    same(tables(after), tables(wanted))
    group = next(name for name in made.refresh().groups if name.startswith("stat."))
    assert store.open(fresh_url).digest([group]) == whole.refresh().digest([group])


def grown(made):
    recipe = {"source": "small", "lengths": list(LENGTHS[:6])}
    with made.writer("tokens", recipe=recipe) as writer:
        for sequence in sequences_of(LENGTHS[6:], first=6):
            writer.put([sequence])
        writer.seal()
    return made.refresh()


@pytest.fixture
def memory(fresh_url):
    """A function: a store of the same tokens, part for part, written at once."""

    def copy(made):
        again = store.create(
            f"{fresh_url}-whole", part_rows=made.part_rows, part_stride=made.part_stride
        )
        recipe = {"source": "small", "lengths": list(LENGTHS[:6])}
        with again.writer("tokens", recipe=recipe) as writer:
            for number, sequence in enumerate(sequences_of(LENGTHS)):
                writer.put([sequence])
                if number == 5:
                    writer.flush()
            writer.seal()
        return again.refresh()

    return copy


class Backwards:
    """A runtime whose parts end in the opposite order, each by a worker of its own that came by post."""

    def map(self, make_worker, parts):
        for part in reversed(parts):
            worker = pickle.loads(pickle.dumps(make_worker))()
            yield part, worker.run(part)
            worker.close()


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "not-kept"])
def test_the_tables_are_the_same_bits_whoever_works_and_kept_or_not(made, tmp_path, keep):
    wanted = statistics_on(made, [MOMENTS, MASSIVE], tmp_path / "one")
    there = [name for name in made.refresh().groups if name.startswith("stat.")]
    assert len(there) == 2
    twin = harvest(tokens_store(f"{made.url}-twin-{keep}"))
    found = statistics_on(
        twin, [MOMENTS, MASSIVE], tmp_path / "two", runtime=Backwards(), keep=keep
    )
    for one, other in zip(found, wanted, strict=True):
        same(tables(one), tables(other))
    kept = [name for name in twin.refresh().groups if name.startswith("stat.")]
    assert kept == (there if keep else [])
    if keep:
        assert twin.refresh().digest(kept) == made.refresh().digest(there)
        assert all(twin.refresh().coverage[name].sealed for name in kept)


class Stopping:
    """A runtime that is interrupted after some parts."""

    def __init__(self, parts):
        self.parts = parts

    def map(self, make_worker, parts):
        worker = make_worker()
        for number, part in enumerate(parts):
            if number == self.parts:
                raise KeyboardInterrupt
            yield part, worker.run(part)
        worker.close()


def test_a_stopped_run_goes_on_where_it_was(made, reads, tmp_path):
    parts = list(made.view.parts("acts"))
    for stop in range(len(parts)):
        twin = harvest(tokens_store(f"{made.url}-{stop}"))
        with pytest.raises(KeyboardInterrupt):
            statistics_on(twin, [MOMENTS], tmp_path / str(stop), runtime=Stopping(stop))
        del reads[:]
        (found,) = statistics_on(twin.refresh(), [MOMENTS], tmp_path / str(stop))
        assert [part for part, _ in reads] == parts[stop:]
        assert found.card.outcome == "done"


def test_other_settings_versions_and_columns_are_other_groups(made, monkeypatch, tmp_path):
    def groups():
        return {name for name in made.refresh().groups if name.startswith("stat.")}

    statistics_on(made, [MASSIVE], tmp_path)
    first = groups()
    statistics_on(made, [dataclasses.replace(MASSIVE, ratio=2.0)], tmp_path)
    assert len(groups()) == 2
    monkeypatch.setattr(type(MASSIVE), "version", 99)
    statistics_on(made, [MASSIVE], tmp_path)
    assert len(groups()) == 3
    assert first < groups()


def test_a_missing_column_is_answered_with_the_ingest_command(fresh_url, tmp_path):
    made = harvest(tokens_store(fresh_url), sites=SITES[:1])
    with pytest.raises(JobError, match=r"Add them: actlake ingest --into .*resid_post") as caught:
        statistics_on(made, [MASSIVE], tmp_path)
    assert caught.value.kind == "columns-missing"
    assert not (tmp_path / "results").exists()
    assert set(made.refresh().groups) == {"tokens", "acts"}


def test_a_sample_is_refused_by_name(fresh_url, tmp_path):
    with pytest.raises(JobError, match="masked-group"):
        statistics_on(small_store(fresh_url), [MOMENTS], tmp_path, groups=["sample"])


def test_a_store_no_model_filled_has_moments_too(fresh_url, tmp_path):
    made = small_store(fresh_url)
    (result,) = statistics_on(made, [MOMENTS], tmp_path, groups=["acts"])
    found = result.table("sites")
    assert set(found["site"]) == {"h", "f", "i"}
    assert (found["rows"] == sum(LENGTHS)).all()
    h = made.read("acts:h").astype(np.float64)
    at = found["site"].index("h")
    assert found["mean"][at] == pytest.approx(h.mean(), rel=1e-10)


def test_groups_of_no_common_part_are_refused(fresh_url, tmp_path):
    made = harvest(tokens_store(fresh_url), parts=[0], sites=SITES[:1])
    made = harvest(made, parts=[1], group="more", sites=SITES[1:])
    with pytest.raises(JobError, match="no-rows"):
        statistics_on(made, [MASSIVE], tmp_path)


def test_partials_are_part_of_what_verify_checks(made, tmp_path):
    statistics_on(made, [MOMENTS], tmp_path)
    report = store.verify(made)
    assert report.ok
    assert report.groups == 3
