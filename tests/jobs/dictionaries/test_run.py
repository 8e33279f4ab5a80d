"""From a store to a dictionary: the same bits from stores that say the same, resumable, checked against truth."""

import dataclasses
import json

import numpy as np
import pytest

import store
from ingest.config import TokensConfig
from ingest.run import ingest_vectors
from ingest.sources import SOURCES
from jobs.codes import PlainCodeOps
from jobs.dictionaries import TrainConfig
from jobs.dictionaries.held_out import against_truth, evaluate_on, figures
from jobs.dictionaries.recipe import Recipe
from jobs.dictionaries.run import load, train_all, train_on
from jobs.errors import JobError
from jobs.runtimes.in_process import InProcess

CONFIG = TrainConfig(
    variant={"kind": "batch_topk", "latents": 64, "k": 3}, steps=40, batch_rows=256, seed=1
)


def _make(url, rows=6000, part_rows=1024):
    source = SOURCES.get("synthetic")(width=16, features=32, active=3.0)
    tokens = TokensConfig(source=source, rows=rows, part_rows=part_rows, context=32)
    ingest_vectors(url, tokens, "acts", runtime=InProcess())
    return store.open(url)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return _make(tmp_path_factory.mktemp("s") / "s")


def test_logically_equal_stores_train_the_same_bits(opened, tmp_path):
    other = _make(tmp_path / "other")
    assert other.id != opened.id
    assert other.view.commit("acts", 0).attempt != opened.view.commit("acts", 0).attempt
    assert other.digest() == opened.digest()
    first, _ = train_on(opened, "x", CONFIG, tmp_path / "a")
    second, _ = train_on(other, "x", CONFIG, tmp_path / "b")
    assert first.to_bytes() == second.to_bytes()


def test_stopping_at_any_step_changes_nothing(opened, tmp_path):
    whole, result = train_on(opened, "x", CONFIG, tmp_path / "whole")
    for stop in (1, 7, 39):
        asked = iter([*[False] * (stop - 1), True])
        with pytest.raises(KeyboardInterrupt):
            train_on(opened, "x", CONFIG, tmp_path / str(stop), should_stop=lambda a=asked: next(a))
        resumed, again = train_on(opened, "x", CONFIG, tmp_path / str(stop))
        assert resumed.to_bytes() == whole.to_bytes()
        curves = [np.asarray(r.table("curve")["fvu"]) for r in (result, again)]
        assert np.array_equal(curves[0][-5:], curves[1][-5:])
        assert (np.diff(again.table("curve")["seconds"]) > 0).all()


class Chooser:
    """Hands out operations that differ in low bits, the next ones each time it is asked."""

    def __init__(self):
        self.asked = 0

    def choose(self, *, rows, width, latents, k, device="cpu"):
        self.asked += 1
        assert (rows, width, latents, k, device) == (256, 16, 64, 3, "cpu")
        return {"forms": {"shift": self.asked}}

    def build(self, choice):
        shift = choice["forms"]["shift"]

        class Shifted(PlainCodeOps):
            def dots(self, *arguments):
                return super().dots(*arguments) * (1 + 1e-6 * shift)

        return Shifted()


def test_a_resumed_run_goes_on_with_the_operations_it_began_with(opened, tmp_path):
    chooser = Chooser()
    whole, result = train_on(opened, "x", CONFIG, tmp_path / "whole", chooser=chooser)
    assert json.loads(result.read_file("ops.json")) == {"forms": {"shift": 1}}
    plain, _ = train_on(opened, "x", CONFIG, tmp_path / "plain")
    assert plain.sha != whole.sha
    other, _ = train_on(opened, "x", CONFIG, tmp_path / "other", chooser=chooser)
    assert other.sha != whole.sha  # so that the next assertion can fail
    chooser.asked, asked = 0, iter([*[False] * 6, True])
    with pytest.raises(KeyboardInterrupt):
        train_on(
            opened, "x", CONFIG, tmp_path / "r", should_stop=lambda: next(asked), chooser=chooser
        )
    with pytest.raises(JobError, match="no-chooser"):
        train_on(opened, "x", CONFIG, tmp_path / "r")
    resumed, _ = train_on(opened, "x", CONFIG, tmp_path / "r", chooser=chooser)
    assert chooser.asked == 1
    assert resumed.to_bytes() == whole.to_bytes()


def test_a_run_that_began_with_the_plain_operations_keeps_them(opened, tmp_path):
    plain, _ = train_on(opened, "x", CONFIG, tmp_path / "plain")
    asked = iter([*[False] * 6, True])
    with pytest.raises(KeyboardInterrupt):
        train_on(opened, "x", CONFIG, tmp_path / "r", should_stop=lambda: next(asked))
    resumed, _ = train_on(opened, "x", CONFIG, tmp_path / "r", chooser=Chooser())
    assert resumed.to_bytes() == plain.to_bytes()


def test_a_finished_run_is_not_run_again(opened, tmp_path):
    book, result = train_on(opened, "x", CONFIG, tmp_path)
    written = {p: p.stat().st_mtime_ns for p in result.path.iterdir()}
    again, same = train_on(opened, "x", CONFIG, tmp_path)
    assert again.sha == book.sha == load(result.path).sha
    assert {p: p.stat().st_mtime_ns for p in same.path.iterdir()} == written


def test_the_curve_and_card_tell_the_run(opened, tmp_path):
    _, result = train_on(opened, "x", CONFIG, tmp_path)
    curve = result.table("curve")
    assert curve["step"][-1] == 40
    assert len(curve["step"]) == 40
    assert curve["rows"][-1] == 40 * 256
    assert curve["fvu"][-1] < curve["fvu"][0]
    assert np.all(np.diff(curve["seconds"]) >= 0)
    card = result.card
    assert card.outcome == "done"
    assert card.seed == 1
    assert store.open(opened.url, pin=card.pin).read("x").shape == (6000, 16)


def test_evaluation_is_on_held_out_documents_with_the_mean_of_those_rows(opened, tmp_path):
    book, _ = train_on(opened, "x", CONFIG, tmp_path)
    found = figures(evaluate_on(opened, "x", book, tmp_path, split="val"))
    split = opened.gather("split", opened.row_ids())
    x = opened.read("x")[split == 1].astype(np.float64)
    assert 0 < len(x) < 2000
    hat = book.reconstruct(x.astype(np.float32)).numpy().astype(np.float64)
    fvu = ((x - hat) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()
    assert found["fvu"] == pytest.approx(fvu, rel=1e-6)
    assert found["rows"] == len(x)


def test_truth_is_measured_by_the_best_decoder_row_of_each_feature(opened, tmp_path):
    from safetensors.numpy import load as load_arrays

    book, _ = train_on(opened, "x", CONFIG, tmp_path)
    files = opened.asset(opened.groups["acts"].recipe["truth"])
    features = load_arrays(files["truth.safetensors"])["features"].astype(np.float64)
    rows = book.W_dec_LD.numpy().astype(np.float64)
    best = [
        max(float(f @ r) / np.linalg.norm(f) / np.linalg.norm(r) for r in rows) for f in features
    ]
    found = against_truth(opened, "x", book)
    assert found["mean_max_cosine"] == pytest.approx(np.mean(best), rel=1e-5)
    assert found["recovered"] == np.mean(np.array(best) > 0.9)


def test_too_few_rows_are_refused_before_anything_is_written(opened, tmp_path):
    config = TrainConfig(variant=CONFIG.variant, steps=1, batch_rows=8192)
    with pytest.raises(JobError, match="too-few-rows"):
        train_on(opened, "x", config, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_best_dictionary_says_what_it_is_of_and_is_a_result_of_its_own(opened, tmp_path):
    recipe = Recipe(
        columns=("x",), config=dataclasses.replace(CONFIG, batch_rows=64), targets=("x",)
    )
    transcoder = {"kind": "transcoder", "latents": 64, "k": 3}
    recipe = dataclasses.replace(
        recipe, config=dataclasses.replace(recipe.config, variant=transcoder)
    )
    plain = train_all(opened, [recipe], tmp_path)[0][1]
    result = train_all(opened, [recipe], tmp_path, keep_best=True)[0][1]
    assert result.path != plain.path
    best = load(result.path / "best")
    assert (best.meta["site"], best.meta["targets"]) == ("x", ["x"])
    assert best.meta["best"]["step"] == CONFIG.steps
    assert not (plain.path / "best").exists()
