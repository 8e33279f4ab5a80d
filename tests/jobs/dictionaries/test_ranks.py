"""Several processes train what one would: the same rows, the same choice to the last tie, the same loss. E7."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch

from jobs.batches import Batch
from jobs.codebook import Codebook
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.calibration import calibrate
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS, Moment
from jobs.dictionaries.learner import Learner
from jobs.dictionaries.ranks import ALONE, Share, told_by_first
from jobs.dictionaries.sparsifiers.batch_topk import batch_topk
from jobs.dictionaries.sparsifiers.minfire import MinFire
from jobs.dictionaries.sparsifiers.row_topk import row_topk
from jobs.dictionaries.train import shared_out, train
from store.errors import InvalidInputError

WORLDS = (1, 2, 4)


class Threads:
    """Ranks as threads of one process."""

    def __init__(self, rank, world, table, barrier):
        self.rank, self.world, self._table, self._barrier = rank, world, table, barrier

    def collect(self, values):
        self._table[self.rank] = values.detach().clone()
        self._barrier.wait(60)
        found = [one.clone() for one in self._table]
        self._barrier.wait(60)
        return found

    def sum(self, value):
        return torch.stack(self.collect(value)).sum(dim=0)

    def largest(self, value):
        return torch.stack(self.collect(value)).amax(dim=0)


def on_ranks(world, work):
    """Return ``work(ranks)`` of every rank."""
    table, barrier = [None] * world, threading.Barrier(world)
    answers, errors = [None] * world, []

    def run(rank):
        try:
            answers[rank] = work(Threads(rank, world, table, barrier))
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next(
            (e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0]
        )
    return answers


class Given:
    def __init__(self, matrix, share):
        self.matrix, self.share = matrix.contiguous(), share
        self.rows, self.latents = self.matrix.shape

    def blocks(self):
        for start in range(0, self.rows, 5):
            yield start, self.matrix[start : start + 5].clone()


SPARSIFIERS = {
    "batch_topk": lambda scores: batch_topk(scores, 3),
    "row_topk": lambda scores: row_topk(scores, 3),
    "minfire": lambda scores: MinFire(3, 4).choose(scores, Moment(1, 100)),
    "more than there are": lambda scores: batch_topk(scores, 39),
}
MATRICES = {
    "spread": lambda g: torch.randn(24, 40, generator=g),
    "ties everywhere": lambda g: torch.randint(-2, 4, (24, 40), generator=g).float(),
    "one rank has it all": lambda g: torch.cat(
        [torch.rand(24, 10, generator=g), -torch.ones(24, 30)], 1
    ),
    "nothing positive": lambda g: -torch.rand(24, 40, generator=g),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=list(MATRICES))
@pytest.mark.parametrize(
    ("name", "by"),
    [*((n, "rows") for n in SPARSIFIERS), *((n, "latents") for n in SPARSIFIERS if n != "minfire")],
)
@pytest.mark.parametrize("world", WORLDS)
def test_the_choice_of_several_is_the_choice_of_one(name, world, by, matrix):
    scores = matrix(torch.Generator().manual_seed(0))
    choose = SPARSIFIERS[name]
    pattern = choose(Given(scores, Share()))
    expected = set((pattern.row * 40 + pattern.latent).tolist())

    def work(ranks):
        if by == "rows":
            share, mine = Share(ranks), scores[ranks.rank :: world]
        else:
            size = 40 // world
            share = Share(ranks, (ranks.rank * size, 40))
            mine = scores[:, ranks.rank * size : (ranks.rank + 1) * size]
        found = choose(Given(mine, share))
        flat = found.row * mine.shape[1] + found.latent
        return share.keys(flat, mine.shape[1]).tolist()

    parts = on_ranks(world, work)
    assert sum(map(len, parts)) == len(expected)
    assert {key for part in parts for key in part} == expected


def rows_for(kind, planted):
    rows, _ = planted(2000, features=24, width=16, active=3, offset=0.3)
    g = torch.randn(rows.shape, generator=torch.Generator().manual_seed(9))
    return ArrayFeed(
        5 * rows,
        128,
        g=g,
        y=rows.flip(1).contiguous() if "target" in VARIANTS.get(kind).needs else None,
    )


def config(kind, **options):
    given = {"steps": 20, "batch_rows": 128, "dead_rows": 400, "precision": "float32", **options}
    return TrainConfig(variant={"kind": kind, "latents": 48, "k": 4}, **given)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", VARIANTS.names())
def test_several_learn_what_one_learns(kind, world, planted):
    """Loss, gradient norm, L0, ages and threshold after twenty steps, AuxK and resampling at work."""
    feed, cfg = rows_for(kind, planted), config(kind, resample_every=7)

    def work(ranks):
        learner = Learner(cfg, calibrate(feed, cfg), precision="float32", ranks=ranks)
        told = []
        for _, batch in zip(range(20), feed.batches(0), strict=False):
            told.append(learner.learn(shared_out(batch, ranks)))
        return learner, told

    alone, expected = work(ALONE)
    for learner, told in on_ranks(world, work):
        for mine, theirs in zip(told, expected, strict=True):
            assert mine.loss == pytest.approx(theirs.loss, rel=2e-3)
            assert mine.l0 == pytest.approx(theirs.l0, rel=0.02, abs=0.02)
        assert told[0].loss == pytest.approx(expected[0].loss, rel=1e-5)
        assert told[0].gradient_norm == pytest.approx(expected[0].gradient_norm, rel=1e-4)
        assert float((learner.age_L != alone.age_L).float().mean()) < 0.1
        others = alone.dictionary.state_dict()
        for name, tensor in learner.dictionary.state_dict().items():
            other = others[name]
            assert float((tensor - other).norm()) <= 0.05 * float(other.norm()) + 1e-3, name


def test_any_number_of_ranks_goes_on_where_another_stopped(planted, tmp_path):
    feed, cfg = rows_for("batch_topk", planted), config("batch_topk")

    def part(world, steps):
        def work(ranks):
            asked = iter([*[False] * (steps - 1), True, True])
            run = train(
                feed,
                cfg,
                out=tmp_path,
                ranks=ranks,
                should_stop=lambda: ranks.rank == 0 and next(asked),
            )
            return run.state["step"], run.state["finished"]

        return on_ranks(world, work)

    assert set(part(2, 5)) == {(5, False)}
    assert set(part(4, 6)) == {(11, False)}
    assert set(part(1, 3)) == {(14, False)}
    done = on_ranks(2, lambda ranks: train(feed, cfg, out=tmp_path, ranks=ranks))
    whole = train(feed, cfg)
    assert done[0].history[-1]["fvu"] == pytest.approx(whole.history[-1]["fvu"], rel=0.02)
    assert done[0].codebook.sha == done[1].codebook.sha
    assert [e["step"] for e in done[0].history] == [5, 11, 14, 20]


def test_rows_that_are_not_finite_are_named_by_every_rank(planted):
    feed, cfg = rows_for("topk", planted), config("topk", scale_rows=128, median_rows=128)
    bad = next(iter(feed.batches(1))).row_ids[[3, 4]].tolist()
    feed.x[bad, 2] = float("inf")

    def work(ranks):
        with pytest.raises(Exception, match="not finite") as caught:
            train(feed, cfg, ranks=ranks)
        return caught.value.where["row_ids"]

    found = on_ranks(2, work)
    assert found[0] == found[1]
    assert set(bad) & set(found[0])


def test_batches_that_cannot_be_shared_out_are_refused():
    batch = Batch(torch.arange(10), torch.zeros(10, 3))
    with pytest.raises(InvalidInputError, match=r"batch_rows.*multiple of 4"):
        shared_out(batch, Threads(0, 4, [], None))


def test_the_first_tells_the_others():
    assert on_ranks(3, lambda r: told_by_first(f"é{r.rank}", r)) == ["é0"] * 3


def close(found, expected):
    """The same dictionary but for the order of sums."""
    assert found.history[0]["loss"] == pytest.approx(expected.history[0]["loss"], rel=1e-5)
    assert found.history[-1]["fvu"] == pytest.approx(expected.history[-1]["fvu"], rel=0.02)
    assert found.history[-1]["dead"] == pytest.approx(expected.history[-1]["dead"], abs=3)
    one, other = found.codebook, expected.codebook
    assert one.latents == other.latents
    cosine = torch.nn.functional.cosine_similarity(one.W_dec_LD, other.W_dec_LD)
    assert float(cosine.quantile(0.1)) > 0.99
    assert torch.allclose(one.theta.mean(), other.theta.mean(), rtol=0.02)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["topk", "batch_topk", "skip_transcoder"])
def test_latents_shared_out_learn_what_they_learn_together(kind, world, planted, tmp_path):
    """AuxK and resampling at work; stopped once and gone on with by as many processes."""
    feed, cfg = rows_for(kind, planted), config(kind, resample_every=7, dead_rows=100)
    expected = train(feed, cfg, log_every=1)
    assert max(entry["dead"] for entry in expected.history) > 0

    def part(ranks, stop):
        return train(
            feed,
            cfg,
            out=tmp_path,
            ranks=ranks,
            by="latents",
            log_every=1,
            should_stop=lambda: stop,
        )

    first = on_ranks(world, lambda ranks: part(ranks, stop=True))
    assert {run.state["step"] for run in first} == {1}
    assert {len(run.learner.dictionary.b_enc_L) for run in first} == {48 // world}
    for run in on_ranks(world, lambda ranks: part(ranks, stop=False)):
        close(run, expected)


def test_latents_of_what_needs_them_together_are_not_shared_out(planted):
    for kind in ("matryoshka", "relu", "minfire"):
        feed, cfg = rows_for(kind, planted), config(kind)
        with pytest.raises(InvalidInputError, match=r"cannot-share-latents.*Train it by rows"):
            on_ranks(2, lambda r, f=feed, c=cfg: train(f, c, ranks=r, by="latents"))


SHARED = """
import sys, torch, torch.distributed as dist
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.ranks import ranks_of_environment
from jobs.dictionaries.train import train
torch.set_num_threads(1)
ranks = ranks_of_environment()
cfg = TrainConfig.from_json(torch.load(sys.argv[1])["cfg"])
feed = ArrayFeed(torch.load(sys.argv[1])["x"], cfg.batch_rows)
run = train(feed, cfg, ranks=ranks, by="latents", log_every=1)
if ranks.rank == 0:
    run.codebook.save(sys.argv[2])
    torch.save(run.history, sys.argv[2] + "/history.pt")
"""


@pytest.mark.timeout(200)
def test_two_gloo_processes_share_out_latents(planted, tmp_path):
    feed, cfg = rows_for("batch_topk", planted), config("batch_topk")
    torch.save({"x": feed.x, "cfg": cfg.to_json()}, tmp_path / "asked.pt")
    (tmp_path / "shared.py").write_text(SHARED)
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    words = [str(tmp_path / "shared.py"), str(tmp_path / "asked.pt"), str(tmp_path / "out")]
    subprocess.run([*torchrun, *words], check=True)
    history = torch.load(tmp_path / "out" / "history.pt")
    found = SimpleNamespace(codebook=Codebook.load(tmp_path / "out"), history=history)
    close(found, train(ArrayFeed(feed.x, 128), cfg, log_every=1))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun_trains_from_the_command_line(tmp_path):
    """Two gloo processes write the one result that a single process then finds done."""
    from ingest.config import TokensConfig
    from ingest.run import ingest_vectors
    from ingest.sources import SOURCES
    from jobs.dictionaries.run import load
    from jobs.runtimes.in_process import InProcess

    source = SOURCES.get("synthetic")(width=16, features=32, active=3.0)
    tokens = TokensConfig(source=source, rows=6000, part_rows=1024, context=32)
    ingest_vectors(tmp_path / "s", tokens, "acts", runtime=InProcess())
    words = ["train", str(tmp_path / "s"), "--site", "x", "--latents", "64", "--k", "3,4"]
    words += ["--batch-rows", "256", "--rows", "10k", "--window-rows", "2048"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
    ]
    subprocess.run(
        [*torchrun, "-m", "jobs.cli", *words, "--out", str(tmp_path / "two")], check=True
    )
    subprocess.run(
        [sys.executable, "-m", "jobs.cli", *words, "--out", str(tmp_path / "one")], check=True
    )
    for path in (tmp_path / "one" / "results").iterdir():
        one, two = load(path), load(tmp_path / "two" / "results" / path.name)
        cosine = torch.nn.functional.cosine_similarity(one.W_dec_LD, two.W_dec_LD)
        assert float(cosine.quantile(0.1)) > 0.9
