"""The choice of forms is a function of shape, hardware and records: never of a clock, always the same."""

from __future__ import annotations

import json

import pytest
import torch

from ingest.models import hardware_class
from jobs.codes import PlainCodeOps
from jobs.dictionaries import TrainConfig, train
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.errors import JobError
from jobs.kernels.codes import choose as module
from jobs.kernels.codes.choose import DEFAULT_RIDGES, MARGIN, RecordedOps, built, choose
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Shape, products, run
from jobs.kernels.codes.inputs import synthetic
from jobs.kernels.codes.records import FOLDER, Figure, Record, record_of, records
from store.errors import InvalidInputError


def shape_of(ratio, *, latents=4096, rows=1024, width=64):
    return Shape(rows=rows, width=width, latents=latents, pairs=round(rows * latents / ratio))


def figure(product, form, ratio, per_term, **sizes):
    shape = shape_of(ratio, **sizes)
    dense = FORMS.get(form).dense
    seconds = per_term * (shape.dense_terms if dense else shape.sparse_terms)
    return Figure(
        product=product,
        form=form,
        dense=dense,
        rounding=FORMS.get(form).rounding,
        rows=shape.rows,
        width=shape.width,
        latents=shape.latents,
        pairs=shape.pairs,
        seconds=seconds,
        seconds_p20=seconds,
        seconds_p80=seconds,
    )


def record_with(*, crossover=10.0, hardware="cpu test", month="202611", latents=4096):
    """Dense and sparse cost the same where latents/k is ``crossover``."""
    figures = [
        figure(product, form, ratio, per_term, latents=latents)
        for product in PRODUCTS
        for ratio in (2.0, 8.0, 32.0, 128.0)
        for form, per_term in (
            ("dense", 1e-11),
            ("dense_bfloat16", 0.25e-11),
            ("bags", crossover * 1e-11),
        )
    ]
    return Record(hardware_class=hardware, month=month, figures=tuple(figures), meta={})


@pytest.mark.parametrize("ratio", [2.0, 5.0, 9.0, 11.0, 12.0, 13.0, 40.0, 1000.0])
def test_sparse_is_chosen_from_its_margin_above_the_measured_crossover_on(ratio):
    found = choose(shape_of(ratio), record_with(crossover=10.0))
    assert found.forms == dict.fromkeys(PRODUCTS, "dense" if ratio < 10 * MARGIN else "bags")


def test_rounding_forms_are_chosen_only_where_they_are_allowed():
    record = record_with(crossover=10.0)  # against bfloat16: 40
    assert choose(shape_of(20.0), record).forms["dots"] == "bags"
    assert choose(shape_of(20.0), record, rounding="bfloat16").forms["dots"] == "dense_bfloat16"
    assert choose(shape_of(80.0), record, rounding="bfloat16").forms["dots"] == "bags"


def test_what_is_foretold_at_a_measured_shape_is_what_was_measured():
    record = record_with()
    for measured in record.figures:
        of = record.forms(measured.product, "bfloat16")[measured.form]
        assert record.predict(of, measured.shape) == pytest.approx(measured.seconds, rel=1e-9)


def test_between_measured_shapes_costs_lie_between_and_weights_count_by_size():
    small = [figure("dots", "bags", ratio, cost) for ratio, cost in ((8.0, 1e-10), (32.0, 4e-10))]
    large = [figure("dots", "bags", 8.0, 9e-10, latents=65536)]
    record = Record(hardware_class="cpu", month="202611", figures=(*small, *large), meta={})
    of = record.forms("dots", "input")["bags"]

    def per_term(ratio, **sizes):
        shape = shape_of(ratio, **sizes)
        return record.predict(of, shape) / shape.sparse_terms

    assert per_term(16.0) == pytest.approx(2e-10)
    assert per_term(2.0) == pytest.approx(1e-10)
    assert per_term(900.0) == pytest.approx(4e-10)
    assert per_term(16.0, latents=30000) == pytest.approx(9e-10)
    assert per_term(16.0, latents=2048, width=128) == pytest.approx(2e-10)


def test_a_record_survives_its_file_and_the_newest_of_its_hardware_counts(tmp_path):
    old, new = record_with(month="202511"), record_with(crossover=99.0, month="202611")
    other = record_with(hardware="cpu other", month="202612")
    for record in (new, other, old):
        record.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "codes_cpu-other_202612.json", "codes_cpu-test_202511.json", "codes_cpu-test_202611.json",
    ]  # fmt: skip
    assert record_of("cpu test", tmp_path) == new
    assert record_of("cpu unknown", tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"format": "actlake-codes-record/9"}',
        '{"format": "actlake-codes-record/1"}',
        "[]",
    ],
)
def test_a_damaged_record_is_refused_by_name(tmp_path, text):
    (tmp_path / "codes_x_202611.json").write_text(text)
    with pytest.raises(JobError, match=r"bad-record.*codes_x_202611.json.*Nothing was started"):
        record_of("cpu test", tmp_path)


def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(JobError, match=r"not-permitted.*codes_cpu-test_202611.json"):
        record_with().save(tmp_path / "file")


def test_records_that_ship_can_be_read_and_decide():
    for record in records():
        assert (FOLDER / f"{record.name}.json").is_file()
        found = choose(shape_of(128.0, width=384), record)
        assert set(found.forms) == set(PRODUCTS)
        assert {FORMS.get(form).rounding for form in found.forms.values()} == {"input"}
        assert not any(FORMS.get(form).dense for form in found.forms.values())


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:1", "mps"])
def test_hardware_without_a_record_takes_the_stated_defaults(device):
    above = choose(shape_of(2 * max(DEFAULT_RIDGES.values())), None, device=device)
    below = choose(shape_of(min(DEFAULT_RIDGES.values()) / 2), None, device=device)
    assert above.forms == module.DEFAULTS.get(device, module.DEFAULTS["cuda"])
    assert below.forms == dict.fromkeys(PRODUCTS, "dense")
    kind = device.partition(":")[0]
    if kind in {"cpu", "cuda"}:
        assert all(kind in FORMS.get(form).devices for form in above.forms.values())


def test_without_a_record_no_product_is_sparse_where_any_recorded_machine_is_slower_so():
    """The defaults hold for machines that were measured, too: there sparse forms win from the default on."""
    for record in records():
        for product, ridge in DEFAULT_RIDGES.items():
            for latents in sorted({f.latents for f in record.figures}):
                shape = shape_of(ridge, latents=latents, width=384, rows=2048)
                took = {
                    form: record.predict(figures, shape)
                    for form, figures in record.forms(product, "input").items()
                }
                assert took[module.DEFAULTS["cpu"][product]] < took["dense"], record.name


def test_what_no_record_decided_is_said():
    decided = RecordedOps().choose(rows=64, width=8, latents=256, k=2)
    said = module.unmeasured({**decided, "record": None, "hardware_class": "cpu-new"})
    assert "cpu-new" in said
    assert "--record" in said
    assert module.unmeasured({**decided, "record": "codes_x"}) == module.unmeasured({}) == ""


def test_a_record_that_lacks_a_product_is_refused(tmp_path):
    figures = tuple(figure("dots", form, 8.0, 1e-9) for form in ("dense", "bags"))
    record = Record(hardware_class="here", month="202601", figures=figures, meta={})
    path = record.save(tmp_path)
    with pytest.raises(JobError, match=r"bad-record.*no figures of gather_sum, scatter_sum"):
        Record.load(path)


def test_chosen_operations_take_each_product_from_its_form():
    case = synthetic(Shape(rows=9, width=7, latents=13, pairs=31))
    ops = built({"gather_sum": "dense", "scatter_sum": "bags", "dots": "sampled_latents"})
    for product in PRODUCTS:
        found = run(product, ops, case)
        form = {"gather_sum": "dense", "scatter_sum": "bags", "dots": "sampled_latents"}[product]
        assert torch.equal(found, run(product, FORMS.get(form)(), case))
        assert torch.allclose(found, products()[product].reference(case), atol=1e-5)


def test_forms_that_are_missing_or_unknown_are_refused():
    with pytest.raises(JobError, match=r"unknown-product.*one of each of gather_sum, scatter_sum"):
        built({"gather_sum": "bags"})
    with pytest.raises(InvalidInputError, match=r"unknown-name.*bags"):
        built({**dict.fromkeys(PRODUCTS, "bags"), "dots": "gone"})


def test_a_choice_is_json_names_where_it_comes_from_and_is_the_same_again(tmp_path):
    Record(
        hardware_class=hardware_class(), month="202611", figures=record_with().figures, meta={}
    ).save(tmp_path)
    chooser = RecordedOps(folder=tmp_path)
    found = [chooser.choose(rows=256, width=16, latents=4096, k=32) for _ in range(2)]
    assert found[0] == found[1] == json.loads(json.dumps(found[0]))
    assert found[0]["forms"] == dict.fromkeys(PRODUCTS, "bags")
    assert found[0]["record"].startswith("codes_cpu-")
    assert found[0]["shape"] == {"rows": 256, "width": 16, "latents": 4096, "pairs": 8192}
    nowhere = RecordedOps(folder=tmp_path / "none").choose(rows=256, width=16, latents=4096, k=32)
    assert nowhere["record"] is None
    assert nowhere["hardware_class"] == hardware_class()


def test_training_with_chosen_operations_is_that_with_plain_ones_but_for_low_bits(tmp_path):
    """Same run twice: same bits. Against the plain operations: the same dictionary within rounding."""
    x = torch.randn(1024, 24, generator=torch.Generator().manual_seed(0))
    feed = ArrayFeed(x, 128, 3)
    cfg = TrainConfig(
        variant={"kind": "batch_topk", "latents": 96, "k": 4},
        steps=12,
        batch_rows=128,
        precision="float32",
    )
    ops = built(module.DEFAULTS["cpu"])
    one, two = train(feed, cfg, ops=ops), train(feed, cfg, ops=ops)
    plain = train(feed, cfg, ops=PlainCodeOps())
    assert one.codebook.to_bytes() == two.codebook.to_bytes()
    assert torch.allclose(one.codebook.W_dec_LD, plain.codebook.W_dec_LD, atol=1e-3)
