"""Many dictionaries on one reading: each is what it would be alone, and goes on from wherever it was."""

from __future__ import annotations

from itertools import count, islice

import numpy as np
import pytest

import store
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.held_out import evaluate_on, figures
from jobs.dictionaries.recipe import Recipe
from jobs.dictionaries.run import load, train_all
from jobs.errors import DivergedError, JobError
from jobs.feed import StoreFeed, read_once

NUMBER = count()
ROWS, WIDTH = 1500, 16


def columns(seed, count=3):
    """Three columns of rows that follow from one another, as the layers of a model do."""
    rng = np.random.default_rng(seed)
    codes = rng.random((ROWS, 20)) * (rng.random((ROWS, 20)) < 0.15)
    return [(codes @ rng.standard_normal((20, WIDTH))).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def held():
    made = store.create(f"memory://together-{next(NUMBER)}", part_rows=256)
    with made.writer("tokens", recipe={"of": "tests"}) as writer:
        for _ in range(ROWS // 50):
            writer.put([store.TokenSequence(token_ids=np.arange(50), split=0)])
        writer.seal()
    made = made.refresh()
    ids, (a, b, c) = made.row_ids(), columns(0)
    with made.writer(
        "acts", columns=dict.fromkeys("abc", f"float32[{WIDTH}]"), recipe={"of": "x"}
    ) as w:
        for part in np.unique(ids // made.part_stride):
            mine = ids // made.part_stride == part
            w.put(ids[mine], {"a": a[mine], "b": b[mine], "c": c[mine]})
    made = made.refresh()
    first = ids[ids // made.part_stride < 3]
    with made.writer("few", columns={"d": f"float32[{WIDTH}]"}, recipe={"of": "y"}) as w:
        for part in range(3):
            mine = first[first // made.part_stride == part]
            w.put(mine, {"d": a[: len(mine)]})
    return made.refresh()


def recipe(kind="batch_topk", read="a", rebuilt="", *, steps=30, seed=0, gradient=None, **variant):
    given = {"kind": kind, "latents": 36, "k": 3, **variant}
    config = TrainConfig(variant=given, steps=steps, batch_rows=100, seed=seed, precision="float32")
    return Recipe(columns=tuple(read), targets=tuple(rebuilt), config=config, gradient=gradient)


RECIPES = [
    recipe(),
    recipe(seed=1, steps=40),
    recipe("topk", "b", k=2),
    recipe("transcoder", "a", "b"),
    recipe("skip_transcoder", "a", "c"),
    recipe("crosscoder", "abc"),
    recipe("clt", "ab", "bc"),
    recipe("g_sae", "a", gradient="b"),
    recipe("jumprelu", "c"),
]
OPTIONS = {"window_rows": 512, "order_seed": 5}


@pytest.fixture(scope="module")
def together(held, tmp_path_factory):
    return train_all(held, RECIPES, tmp_path_factory.mktemp("t"), **OPTIONS)


@pytest.mark.parametrize("at", range(len(RECIPES)))
def test_each_has_the_bits_it_has_alone(held, together, tmp_path, at):
    alone, result = train_all(held, [RECIPES[at]], tmp_path, **OPTIONS)[0]
    book, other = together[at]
    assert alone.to_bytes() == book.to_bytes()
    assert (
        result.path.name == other.path.name
    )  # the same recipe, so either run can go on with the other's


def test_a_stopped_group_goes_on_together_or_apart(held, together, tmp_path):
    asked = iter([*[False] * 11, True])
    with pytest.raises(KeyboardInterrupt):
        train_all(held, RECIPES, tmp_path, should_stop=lambda: next(asked), **OPTIONS)
    two = train_all(held, RECIPES[:2], tmp_path, **OPTIONS)  # these are done, the others at step 12
    asked = iter([*[False] * 4, True])
    with pytest.raises(KeyboardInterrupt):
        train_all(held, RECIPES[2:4], tmp_path, should_stop=lambda: next(asked), **OPTIONS)
    rest = train_all(held, RECIPES, tmp_path, **OPTIONS)  # steps 17, 17, 12, 12, …
    assert [b.sha for b, _ in two] == [b.sha for b, _ in together[:2]]
    assert [b.sha for b, _ in rest] == [b.sha for b, _ in together]


def test_columns_are_read_once_and_batches_are_those_of_each_feed(held, monkeypatch):
    feeds = [
        StoreFeed(held, names, 70, 3, window_rows=512, targets=targets)
        for names, targets in (("a", ()), (("a", "b"), ("c",)), ("b", ("a",)))
    ]
    asked, windows = [], type(held).windows

    def watched(self, names, **options):
        asked.append(list(names))
        return windows(self, names, **options)

    monkeypatch.setattr(type(held), "windows", watched)
    found = list(islice(read_once(feeds, 5), 30))
    read = {tuple(names) for names in asked}
    monkeypatch.undo()
    assert ("a", "b", "c") in read
    for at, feed in enumerate(feeds):
        for mine, batch in zip(found, islice(feed.batches(5), 30), strict=True):
            for one, other in zip(mine[at], batch, strict=True):
                assert (one is None and other is None) or bool((one == other).all())


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3, 17])
def test_ranks_share_out_the_rows_of_every_batch(held, world, start):
    """Over several epochs whose rows are no multiple of the ranks; the union is the batch of one rank."""
    options = {"window_rows": 512, "where": (("pos", ">", 6),)}
    whole = StoreFeed(held, "a", 64, 1, **options)
    assert whole.rows % 4
    ranks = [StoreFeed(held, "a", 64, 1, rank=r, world=world, **options) for r in range(world)]
    shares = [islice(feed.batches(start), 50) for feed in ranks]
    for batch, *mine in zip(islice(whole.batches(start), 50), *shares, strict=True):
        for rank, share in enumerate(mine):
            assert share.row_ids.tolist() == batch.row_ids[rank::world].tolist()
            assert bool((share.x == batch.x[rank::world]).all())


def test_groups_of_different_rows_are_refused(held, tmp_path):
    with pytest.raises(JobError, match="feeds-differ"):
        train_all(held, [recipe(), recipe(read="d")], tmp_path, **OPTIONS)


def test_one_that_diverges_leaves_the_others_a_checkpoint(held, tmp_path):
    wild = Recipe(
        columns=("a",),
        config=TrainConfig(
            variant={"kind": "topk", "latents": 36, "k": 3},
            steps=30,
            batch_rows=100,
            lr=1e30,
            clip_norm=1e9,
            precision="float32",
        ),
    )
    with pytest.raises(DivergedError):
        train_all(held, [RECIPES[0], wild], tmp_path, **OPTIONS)
    kept = list(tmp_path.glob("results/*/checkpoints/step-*"))
    assert len(kept) >= 1
    again = train_all(held, [RECIPES[0]], tmp_path, **OPTIONS)
    assert load(again[0][1].path).meta["finished"]


@pytest.mark.parametrize("at", [0, 3, 4, 5, 6])
def test_what_reads_and_rebuilds_several_columns_is_evaluated_on_them(held, together, tmp_path, at):
    """FVU of the target's rows about their mean, by the definition."""
    made, (book, _) = RECIPES[at], together[at]
    result = evaluate_on(held, made.columns, book, tmp_path, targets=made.targets, split="train")
    x = np.concatenate([held.read(name) for name in made.columns], axis=1)
    y = np.concatenate([held.read(name) for name in made.targets or made.columns], axis=1)
    hat = book.reconstruct(x).double().numpy()
    fvu = np.square(y - hat).sum() / np.square(y - y.mean(axis=0, dtype=np.float64)).sum()
    assert figures(result)["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert figures(result)["rows"] == ROWS


def test_a_dictionary_of_other_columns_is_refused(held, together, tmp_path):
    book, _ = together[5]
    with pytest.raises(JobError, match=r"width-mismatch.*reads rows of width 48"):
        evaluate_on(held, "a", book, tmp_path)
    with pytest.raises(JobError, match=r"width-mismatch.*rebuilds rows of width 16"):
        evaluate_on(held, "a", together[3][0], tmp_path, targets=("a", "b"))
    with pytest.raises(JobError, match=r"no-truth.*synthetic"):
        evaluate_on(held, "a", together[0][0], tmp_path, suites=["truth"])
    assert not list(tmp_path.iterdir())
