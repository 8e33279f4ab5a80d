"""The training run: resuming, stopping, refusing, diverging, and its schedules."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from jobs.dictionaries import schedule
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.calibration import calibrate, calibrate_threshold, geometric_median
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS, derive_seed
from jobs.dictionaries.learner import Learner, resolve_precision
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.train import train
from jobs.errors import DivergedError, JobError
from store.errors import ConflictError, InvalidInputError

TIMED = ("seconds", "rows_per_second", "seconds_left")
STEPS = 12

each_variant = pytest.mark.parametrize("name", VARIANTS.names())


def untimed(history):
    return [{key: value for key, value in entry.items() if key not in TIMED} for entry in history]


def has_auxk(run):
    """Whether AuxK is at work from the first steps: not where all latents fire until a penalty bites."""
    own = run.learner.dictionary
    return own.penalty is None and any(loss is auxk for _, loss in own.losses)


def after(count):
    """Return a should_stop that says yes once it was asked ``count`` times."""
    asked = iter(range(count))
    return lambda: next(asked, None) is None or next_is_last(asked)


def next_is_last(asked):
    return asked.__length_hint__() == 0


@each_variant
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(name, small_run, tmp_path):
    """Interrupted after every step in turn; a short dead window keeps AuxK at work."""
    feed, cfg = small_run(name, steps=STEPS, dead_rows=50)
    whole = train(feed, cfg, log_every=1)
    if has_auxk(whole):
        assert max(entry["dead"] for entry in whole.history) > 0
    for step in range(1, STEPS):
        out = tmp_path / str(step)
        first = train(feed, cfg, out=out, log_every=1, should_stop=after(step))
        assert (first.state["step"], first.state["finished"]) == (step, False)
        rest = train(feed, cfg, out=out, log_every=1)
        assert rest.state["finished"]
        assert rest.codebook.sha == whole.codebook.sha
        assert untimed(rest.history) == untimed(whole.history)


@each_variant
def test_a_run_stopped_after_each_of_its_steps_ends_with_the_same_bits(name, small_run, tmp_path):
    feed, cfg = small_run(name, steps=STEPS, dead_rows=50)
    whole = train(feed, cfg)
    for step in range(1, STEPS):
        part = train(feed, cfg, out=tmp_path, should_stop=lambda: True)
        assert part.state["step"] == step
    assert train(feed, cfg, out=tmp_path).codebook.sha == whole.codebook.sha


def test_a_killed_run_goes_on_from_its_last_checkpoint(small_run, tmp_path):
    """Killed between checkpoints, the steps since the last one are taken again."""
    feed, cfg = small_run(steps=STEPS, scale_rows=64, median_rows=64)
    whole = train(feed, cfg)

    class Killed(BaseException):
        pass

    class Dying(ArrayFeed):
        def batches(self, start):
            for count, batch in enumerate(super().batches(start)):
                if start + count == 7:
                    raise Killed
                yield batch

    dying = Dying(feed.x, feed.batch_rows, feed.seed)
    with pytest.raises(Killed):
        train(dying, cfg, out=tmp_path, checkpoint_every=3)
    found = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert found == ["step-000000003", "step-000000006"]
    assert train(feed, cfg, out=tmp_path).codebook.sha == whole.codebook.sha


def test_bfloat16_runs_resume_to_the_same_bits_and_keep_their_precision(small_run, tmp_path):
    feed, cfg = small_run(steps=STEPS, precision="bfloat16")
    whole = train(feed, cfg)
    train(feed, cfg, out=tmp_path, should_stop=after(5))
    rest = train(feed, cfg, out=tmp_path)
    assert rest.codebook.sha == whole.codebook.sha
    assert rest.state["precision"] == "bfloat16"


def test_seed_and_rows_decide_the_bits(small_run):
    feed, cfg = small_run()
    torch.manual_seed(123)
    one = train(feed, cfg).codebook.sha
    torch.manual_seed(321)
    assert train(feed, cfg).codebook.sha == one
    other_feed, other_cfg = small_run(seed=4)
    assert train(other_feed, cfg).codebook.sha != one
    assert train(feed, other_cfg).codebook.sha != one


def test_logging_and_checkpoints_leave_the_bits_alone(small_run, tmp_path):
    feed, cfg = small_run()
    plain = train(feed, cfg).codebook.sha
    busy = train(feed, cfg, out=tmp_path, log=lambda _: None, log_every=1, checkpoint_every=1)
    assert busy.codebook.sha == plain


def test_a_finished_run_is_taken_up_without_a_step(small_run, tmp_path):
    feed, cfg = small_run()
    done = train(feed, cfg, out=tmp_path)
    told = []
    again = train(feed, cfg, out=tmp_path, log=told.append)
    assert told == []
    assert again.codebook.sha == done.codebook.sha
    assert again.history == done.history


def test_without_resume_a_run_starts_afresh(small_run, tmp_path):
    feed, cfg = small_run()
    done = train(feed, cfg, out=tmp_path)
    told = []
    again = train(feed, cfg, out=tmp_path, log=told.append, log_every=1, resume=False)
    assert len(told) == cfg.steps
    assert again.codebook.sha == done.codebook.sha


def test_a_run_started_afresh_is_not_taken_up_from_the_one_before(small_run, tmp_path):
    feed, cfg = small_run()
    train(feed, cfg, out=tmp_path)
    train(feed, cfg, out=tmp_path, resume=False, should_stop=after(4))
    told = []
    train(feed, cfg, out=tmp_path, log=told.append, log_every=1)
    assert [entry["step"] for entry in told] == list(range(5, cfg.steps + 1))


CHANGES = {
    "another k": {"variant": {"k": 5}},
    "another rate": {"lr": 1e-4},
    "another length": {"steps": 13},
    "another order": {"seed": 9},
    "other rows": {"rows": 501},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_another_recipes_checkpoint_is_refused_and_left_alone(change, small_run, tmp_path):
    feed, cfg = small_run(k=4)
    train(feed, cfg, out=tmp_path, should_stop=after(3))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    variant = change.get("variant", {})
    other = small_run(
        **{key: value for key, value in change.items() if key != "variant"}, **variant
    )
    with pytest.raises(ConflictError) as caught:
        train(*other, out=tmp_path)
    assert caught.value.kind == "other-recipe"
    assert "Nothing was changed" in str(caught.value)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_stop_the_run_and_are_named(value, small_run, tmp_path):
    feed, cfg = small_run(steps=6, scale_rows=64, median_rows=64)
    ids = [batch.row_ids for _, batch in zip(range(6), feed.batches(0), strict=False)]
    used_later = [int(i) for i in ids[3] if not any((part == i).any() for part in ids[:3])][:2]
    feed.x[used_later, 3] = value
    with pytest.raises(DivergedError) as caught:
        train(feed, cfg, out=tmp_path, checkpoint_every=1)
    assert caught.value.kind == "diverged"
    assert sorted(caught.value.where["row_ids"]) == sorted(used_later)
    listed = json.loads((tmp_path / "diverged.json").read_bytes())
    assert listed["step"] == 3
    assert sorted(listed["row_ids"]) == sorted(used_later)
    assert (tmp_path / "checkpoints" / "step-000000003").is_dir()


def test_rows_that_are_not_finite_are_named_before_the_first_step_where_they_spoil_the_scale(
    small_run, tmp_path
):
    feed, cfg = small_run()
    feed.x[[7, 310], 0] = float("nan")
    with pytest.raises(DivergedError, match="scale") as caught:
        train(feed, cfg, out=tmp_path)
    assert sorted(caught.value.where["row_ids"]) == [7, 310]
    assert sorted(json.loads((tmp_path / "diverged.json").read_bytes())["row_ids"]) == [7, 310]


def test_a_gradient_that_is_not_finite_changes_nothing(small_run):
    feed, cfg = small_run()
    learner = Learner(cfg, calibrate(feed, cfg), precision="float32")
    batches = feed.batches(0)
    learner.learn(next(batches))
    before = {name: tensor.clone() for name, tensor in learner.tensors().items()}
    learner.dictionary.b_enc_L.register_hook(lambda grad: grad * float("nan"))
    report = learner.learn(next(batches))
    assert not report.finite
    assert np.isfinite(report.loss)
    assert learner.step == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.tensors().items())


def test_a_rate_that_blows_up_names_the_batch(small_run, tmp_path):
    feed, cfg = small_run(steps=40, lr=1e30, clip_norm=1e9)
    with pytest.raises(DivergedError, match="finite rows"):
        train(feed, cfg, out=tmp_path)
    assert len(json.loads((tmp_path / "diverged.json").read_bytes())["row_ids"]) == 64


def test_a_feed_that_ends_is_an_error(small_run):
    feed, cfg = small_run()

    class Short(ArrayFeed):
        def batches(self, start):
            yield from (batch for _, batch in zip(range(4), super().batches(start), strict=False))

    with pytest.raises(JobError, match=r"feed-ended.*after 4"):
        train(Short(feed.x, feed.batch_rows), cfg)


def test_a_batch_of_another_width_is_refused(small_run):
    feed, cfg = small_run(scale_rows=64, median_rows=64)

    class Odd(ArrayFeed):
        def batches(self, start):
            for count, batch in enumerate(super().batches(start)):
                yield batch if count < 2 else batch._replace(x=batch.x[:, :7])

    with pytest.raises(InvalidInputError, match=r"width-mismatch.*batch 2"):
        train(Odd(feed.x, feed.batch_rows), cfg)


@each_variant
def test_a_stopped_run_gives_a_dictionary_that_can_be_used(name, small_run):
    feed, cfg = small_run(name, steps=40)
    stopped = train(feed, cfg, should_stop=after(30))
    assert stopped.state["finished"] is False
    assert stopped.codebook.meta["finished"] is False
    l0 = len(stopped.codebook.encode(feed.x)) / feed.rows
    if stopped.learner.dictionary.penalty is None:
        assert l0 == pytest.approx(4, rel=0.1)
    else:  # it was still on its way down
        assert 0 < l0 < 24


@pytest.mark.parametrize("start", [0, 1, 6, 7, 8, 40])
def test_a_feed_restarts_at_any_batch(start):
    feed = ArrayFeed(torch.arange(70.0)[:, None].repeat(1, 2), 9, seed=1)
    whole = [batch.row_ids for _, batch in zip(range(start + 3), feed.batches(0), strict=False)]
    rest = [batch.row_ids for _, batch in zip(range(3), feed.batches(start), strict=False)]
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_every_epoch_of_a_feed_holds_every_row_once():
    feed = ArrayFeed(torch.arange(60.0)[:, None], 7)
    stream = torch.cat(
        [batch.row_ids for _, batch in zip(range(60), feed.batches(0), strict=False)]
    )
    epochs = stream.view(-1, 60)
    assert all(torch.equal(epoch.sort().values, torch.arange(60)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_seeds_are_the_first_bytes_of_a_digest():
    assert derive_seed(0, "feed/epoch", 3) != derive_seed(0, "feed/epoch", 4)
    assert derive_seed(0, "a") == int.from_bytes(hashlib.sha256(b"0/a/0").digest()[:8], "big") >> 1


CONFIG_FAULTS = {
    "no steps": {"steps": 0},
    "no batch": {"batch_rows": 0},
    "rate below zero": {"lr": -1.0},
    "share above one": {"decay_share": 1.5},
    "unknown precision": {"precision": "float16"},
    "warm-up below zero": {"warmup_steps": -1},
    "moment that never decays": {"second_decay": 1.0},
    "nothing clipped to": {"clip_norm": 0.0},
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS.values(), ids=list(CONFIG_FAULTS))
def test_illegal_numbers_are_refused_by_name(fault):
    fields = {"variant": {"kind": "topk", "latents": 8, "k": 2}, "steps": 5, **fault}
    with pytest.raises(InvalidInputError, match=f"invalid-config.*{next(iter(fault))}"):
        TrainConfig(**fields)


def test_unknown_fields_and_variants_are_refused():
    known = {"variant": {"kind": "topk", "latents": 8, "k": 2}, "steps": 5}
    with pytest.raises(InvalidInputError, match=r"unknown-field.*sped"):
        TrainConfig.from_json({**known, "sped": 1})
    with pytest.raises(InvalidInputError, match=r"unknown-name.*topk"):
        TrainConfig(**{**known, "variant": {"kind": "tipk", "latents": 8, "k": 2}})


def config(steps=1000, **options):
    variant = {"kind": "topk", "latents": 2**14, "k": 2}
    return TrainConfig(variant=variant, steps=steps, **options)


def test_the_rate_rises_holds_and_falls_to_zero():
    cfg = config(lr=1.0, warmup_steps=100, decay_share=0.2)
    rates = [schedule.learning_rate(cfg, step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 101)
    assert np.all(np.diff(rates[:101]) > 0)
    assert rates[100:801] == [1.0] * 701
    assert np.all(np.diff(rates[800:]) < 0)
    assert rates[-1] == pytest.approx(1 / 200)


def test_short_runs_get_higher_rates_and_faster_moments_and_long_ones_the_published_rule():
    assert schedule.peak_lr(config(steps=30_000)) == pytest.approx(2e-4)
    assert schedule.peak_lr(config(steps=10**6)) == pytest.approx(2e-4)
    assert schedule.peak_lr(config(steps=3000)) == pytest.approx(2e-4 * 6**0.75)
    assert schedule.peak_lr(config(steps=10)) == 8e-3
    assert schedule.peak_lr(config(steps=10, lr=0.5)) == 0.5
    assert schedule.second_decay(config(steps=10)) == pytest.approx(0.99)
    assert schedule.second_decay(config(steps=5000)) == pytest.approx(0.998)
    assert schedule.second_decay(config(steps=10**6)) == pytest.approx(0.999)
    assert schedule.second_decay(config(second_decay=0.9)) == 0.9


def test_windows_follow_the_length_of_the_run():
    short, long = config(steps=100, batch_rows=1000), config(steps=10**6, batch_rows=1000)
    assert schedule.dead_window(short) == 10_000
    assert schedule.dead_window(long) == 10_000_000
    assert schedule.dead_window(config(dead_rows=77)) == 77
    assert schedule.threshold_start(short) == 50
    assert schedule.threshold_start(long) == 1000


def test_precision_is_what_was_asked_or_what_the_machine_multiplies(monkeypatch):
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16"
    assert resolve_precision("auto", "cuda:0") == "bfloat16"
    for flags, expected in [({"amx_bf16", "fma"}, "bfloat16"), ({"fma"}, "float32")]:
        monkeypatch.setattr("ingest.models.dtypes._cpu_flags", lambda flags=flags: flags)
        assert resolve_precision("auto", "cpu") == expected


def test_calibration_measures_scale_variance_and_median():
    x = torch.randn(3000, 5, generator=torch.Generator().manual_seed(0)) * 3 + 7
    x[::100] = 1e4  # outliers move the mean, not the geometric median
    feed = ArrayFeed(x, 100)
    found = calibrate(feed, config(scale_rows=3000, median_rows=3000))
    square = x.double().square().sum(1).mean()
    assert found.scales_in == pytest.approx([float(square) ** -0.5], rel=1e-6)
    assert found.scales_out == found.scales_in
    spread = (x.double() - x.double().mean(0)).square().sum(1).mean()
    assert found.variance == pytest.approx(float(spread / square), rel=1e-5)
    assert found.median_norm == pytest.approx(float(x.norm(dim=1).median()))
    assert (found.median - 7).abs().max() < 0.5


def test_rows_that_are_all_equal_or_zero_calibrate_to_ones():
    for value in (0.0, 2.0):
        found = calibrate(ArrayFeed(torch.full((64, 3), value), 16), config())
        assert found.variance == 1.0
        assert np.isfinite(found.scales_in[0])


def test_the_geometric_median_of_symmetric_points_is_their_centre():
    points = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]) + 5
    assert torch.allclose(geometric_median(points), torch.tensor([5.0, 5.0]), atol=1e-5)


@pytest.mark.parametrize(
    "guess", [0.0, 1e-3, 0.5, 1e3], ids=["none", "low", "near", "far too high"]
)
def test_the_threshold_keeps_k_latents_a_row_whatever_the_guess(guess, small_run):
    feed, cfg = small_run(rows=3000, steps=60)
    book = train(feed, cfg).learner.codebook(0.0)
    theta = calibrate_threshold(book, feed, k=4, rows=10**6, guess=guess)
    active = sum(int((pre > theta).sum()) for _, pre, _ in book.blocks(feed.x))
    assert active / feed.rows == pytest.approx(4, rel=0.01)
