"""How fast a worker goes is told in what it commits, and changes nothing a store says."""

from datetime import UTC, datetime

import pytest

import store
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import StoppedError
from ingest.errors import IngestError
from ingest.harvest import Harvester, MakeHarvester
from ingest.models import toy
from ingest.pace import Pace, Spent
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess

SITE = "blocks.0.resid_post"


class Clock:
    def __init__(self):
        self.at = 100.0

    def __call__(self):
        return self.at


def test_laps_add_up_and_idle_time_is_nobodys():
    clock = Clock()
    pace = Pace(clock=clock, now=lambda: datetime(2026, 11, 20, 12, 0, 1, 500_000, tzinfo=UTC))
    with pace.working():
        clock.at += 3
        with pace.storing():
            clock.at += 1
        first = pace.lap()
        with pace.storing():  # the commit itself: told by the next lap
            clock.at += 2
    clock.at += 50  # no part at hand
    with pace.working():
        clock.at += 5
        second = pace.lap()
    assert first == {
        "finished": "2026-11-20T12:00:01.500+00:00",
        "seconds": "4.000",
        "store_seconds": "1.000",
    }
    assert (second["seconds"], second["store_seconds"]) == ("7.000", "2.000")


def test_what_was_spent_is_told_once_and_in_full():
    clock = Clock()
    pace = Pace(clock=clock)
    with pace.working():
        clock.at += 3
        with pace.storing():
            clock.at += 1
        pace.lap()
        with pace.storing():  # the commit itself
            clock.at += 2
        pace.stored(0.75)
    assert pace.spent() == Spent(work_seconds=6.0, waited_seconds=3.0, storing_cpu_seconds=0.75)
    assert pace.spent() == Spent()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return toy.save("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(8):
        (folder / f"d{number}.txt").write_text(toy.TEXT * (1 + number % 3))
    return folder


class Keeping(InProcess):
    """Remembers the factory and the parts, and does no part of a set."""

    def __init__(self, failing=()):
        super().__init__()
        self.failing = set(failing)

    def map(self, make_worker, parts):
        self.make, self.parts = make_worker, list(parts)
        yield from super().map(make_worker, [part for part in parts if part not in self.failing])
        failed = sorted(self.failing & set(parts))
        if failed:
            told = {str(part): "OSError: disk on fire" for part in failed}
            raise JobError("some parts", kind="parts-failed", parts=told)


def _ingest(url, corpus, model, runtime):
    tokens = TokensConfig(
        source=SOURCES.get("text")(paths=(str(corpus),)), context=32, part_rows=256
    )
    harvest = HarvestConfig(model=str(model), sites=(SITE,), dtype="float32", batch=4)
    return ingest(url, tokens, harvest, runtime=runtime)


def test_every_commit_tells_its_pace(tmp_path, corpus, model):
    _ingest(tmp_path / "s", corpus, model, InProcess())
    view = store.open(tmp_path / "s").view
    told = [view.commit("acts", part).provenance for part in view.parts("acts")]
    times = [datetime.fromisoformat(facts["finished"]) for facts in told]
    assert times == sorted(times)
    assert len(set(times)) > 1
    assert all(0 <= float(f["store_seconds"]) <= float(f["seconds"]) for f in told)
    assert sum(float(f["seconds"]) for f in told) > 0


def test_an_ingest_tells_what_the_store_cost_it_and_a_second_run_that_it_cost_nothing(
    tmp_path, corpus, model
):
    first = _ingest(tmp_path / "s", corpus, model, InProcess())
    assert 0 < first.spent.waited_seconds < first.spent.work_seconds
    assert first.spent.storing_cpu_seconds > 0
    assert first.new_bytes == first.group_bytes > 0
    again = _ingest(tmp_path / "s", corpus, model, InProcess())
    assert again.spent == Spent()
    assert again.new_bytes == 0
    assert again.group_bytes == first.group_bytes


def test_parts_that_failed_everywhere_are_recorded_with_their_documents(tmp_path, corpus, model):
    url = tmp_path / "s"
    with pytest.raises(IngestError) as caught:
        _ingest(url, corpus, model, Keeping(failing=[1, 3]))
    error = caught.value
    assert error.kind == "parts-failed"
    assert error.exit_code == 1
    assert set(error.where["parts"]) == set(error.where["documents"]) == {"1", "3"}
    assert all(name.endswith(".txt") for name in error.where["documents"]["3"])
    assert error.where["documents"]["1"][0] in error.message
    assert "disk on fire" in error.message
    opened = store.open(url)
    assert not opened.coverage["acts"].sealed
    assert set(opened.view.parts("tokens")) - set(opened.view.parts("acts")) == {1, 3}
    report = store.verify(opened)
    assert report.ok
    assert [key.split("/")[3][:8] for key in report.failed_parts] == ["00000001", "00000003"]
    again = Keeping()
    _ingest(url, corpus, model, again)
    assert again.parts == [1, 3]
    assert store.open(url).coverage["acts"].sealed
    _ingest(tmp_path / "whole", corpus, model, InProcess())
    assert store.open(url).digest() == store.open(tmp_path / "whole").digest()


def test_a_factory_goes_elsewhere_without_its_model(tmp_path, corpus, model):
    import pickle

    kept = Keeping()
    _ingest(tmp_path / "s", corpus, model, kept)
    assert isinstance(kept.make, MakeHarvester)
    assert kept.make.loaded is not None
    data = pickle.dumps(kept.make)
    assert len(data) < 10_000
    there = pickle.loads(data)
    assert there.loaded is None
    assert there.job == kept.make.job
    assert there().run(0)["skipped"] == 1


def _begun(tmp_path, corpus, model):
    kept = Keeping(failing=range(99))
    with pytest.raises(IngestError):
        _ingest(tmp_path / "s", corpus, model, kept)
    return kept


def test_a_part_somebody_else_committed_meanwhile_is_passed_over(tmp_path, corpus, model):
    kept = _begun(tmp_path, corpus, model)
    one, other = kept.make(), kept.make()
    assert one.run(0)["skipped"] == 0
    assert other.run(0)["skipped"] == 1
    assert not store.verify(store.open(tmp_path / "s")).orphans


def test_of_two_workers_at_one_part_the_first_to_commit_wins(tmp_path, corpus, model, monkeypatch):
    kept = _begun(tmp_path, corpus, model)
    one, other = kept.make(), kept.make()
    monkeypatch.setattr(Harvester, "_committed", lambda *_: False)  # as where both began before
    rows = one.run(0)["rows"]
    assert other.run(0)["rows"] == rows
    report = store.verify(store.open(tmp_path / "s"))
    assert report.ok
    assert not report.orphans


def test_a_worker_told_to_stop_leaves_nothing_of_the_part(tmp_path, corpus, model):
    worker = _begun(tmp_path, corpus, model).make()
    worker.stop()
    with pytest.raises(StoppedError):
        worker.run(2)
    opened = store.open(tmp_path / "s")
    assert not store.verify(opened).orphans
    assert 2 not in opened.view.parts("acts")
    assert worker.run(2)["skipped"] == 0  # it was told about one part only
