"""The measurement: gates before times, the baseline twice, crossovers from the grid, figures that can be kept."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ingest.models.dtypes import multiplies_bfloat16
from jobs import cli
from jobs.errors import UsageError
from jobs.kernels.codes.bench import CodesBench, bench_codes, recorded
from jobs.kernels.codes.contract import FORMS, PRODUCTS, Shape, products
from jobs.kernels.codes.crossover import crossing, crossovers
from jobs.kernels.codes.inputs import synthetic
from jobs.kernels.codes.records import Record
from jobs.kernels.codes.rows import Batch, Row, product_rows
from jobs.kernels.impls.codes_bags import Bags
from jobs.kernels.measure import ceilings
from jobs.results import Result
from jobs.verbs.bench_codes import _encoders

SMALL = CodesBench(width=16, latents=(32, 64), k=(2, 8, 32), rows=24, repeats=5)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return bench_codes(SMALL, tmp_path_factory.mktemp("bench"), encoders=_encoders())


def rows_of(table):
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def test_every_form_of_every_product_is_measured_at_every_shape_of_the_grid(result):
    rows = [row for row in rows_of(result.table("codes")) if row["product"]]
    forms = [
        (p, n)
        for n in FORMS.names()
        for p in PRODUCTS
        if p in FORMS.get(n).products
        and "cpu" in FORMS.get(n).devices
        and (multiplies_bfloat16() or FORMS.get(n).rounding != "bfloat16")
    ]
    shapes = [(32, 2), (32, 8), (64, 2), (64, 8), (64, 32)]  # 32 of 32 latents is no sparse code
    found = [(row["product"], row["method"], row["latents"], row["k"]) for row in rows]
    assert sorted(found) == sorted((*form, *shape) for form in forms for shape in shapes)
    assert all(row["valid"] and row["status"] == "ok" and not row["reason"] for row in rows)


def test_times_add_up_and_are_set_against_the_baseline_timed_twice(result):
    for row in rows_of(result.table("codes")):
        assert row["t_total_us"] == row["t_plan_us"] + row["t_exec_us"] > 0
        assert row["t_p20_us"] <= row["t_total_us"] <= row["t_p80_us"]
        assert row["n_samples"] == 5
        assert row["t_dense_best_us"] <= row["t_dense_again_us"]
        assert row["noise_band"] >= row["t_dense_again_us"] / row["t_dense_best_us"] - 1 - 1e-9
        assert row["speedup_best"] == pytest.approx(row["t_dense_best_us"] / row["t_total_us"])
        apart = max(row["speedup_best"], 1 / row["speedup_best"]) - 1
        inside = apart <= row["noise_band"] * (1 + 1e-9)
        assert (row["verdict"] == "no difference") == inside
        orders = row["product"] == "scatter_sum" and not row["dense"]
        assert (row["t_plan_us"] > 0) == orders


def test_one_form_of_each_product_is_the_one_records_choose(result):
    rows = [row for row in rows_of(result.table("codes")) if row["product"]]
    for row in rows:
        same = [
            o for o in rows if all(o[n] == row[n] for n in ("product", "latents", "k", "control"))
        ]
        assert sum(o["chosen"] for o in same) == 1


def test_encoders_are_held_to_what_the_best_scores_are(result):
    rows = [row for row in rows_of(result.table("codes")) if not row["product"]]
    assert {row["op"] for row in rows} == {"encode_topk", "encode_threshold"}
    assert {row["method"] for row in rows} == {
        "torch_topk",
        "blocks_float32",
        *(["blocks_bfloat16"] if multiplies_bfloat16() else []),
    }
    assert all(row["valid"] for row in rows)


def test_where_bfloat16_would_be_emulated_it_is_left_out(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("ingest.models.dtypes._cpu_flags", frozenset)
    command = ["bench", "codes", "--width", "16", "--latents", "64", "--k", "8", "--rows", "24"]
    assert cli.main([*command, "--repeats", "5", "--out", str(tmp_path)]) == 0
    assert "left out: this CPU does not multiply it" in capsys.readouterr().out
    (result,) = (Result.open(path) for path in (tmp_path / "results").iterdir())
    rows = rows_of(result.table("codes"))
    assert "dense" in {row["method"] for row in rows}
    assert not [row for row in rows if "bfloat16" in row["method"]]
    assert all(row["frac_of_limit"] > 0 for row in rows)


def test_an_encoder_that_misses_the_best_is_not_timed(tmp_path):
    wrong = {
        "encode_topk": {
            "unlucky": lambda x, w, b, k: _encoders()["encode_topk"]["blocks_float32"](x, -w, b, k)
        }
    }
    settings = CodesBench(width=16, latents=(64,), k=(4,), rows=24, repeats=5)
    table = bench_codes(settings, tmp_path, encoders=wrong).table("codes")
    (row,) = [row for row in rows_of(table) if row["method"] == "unlucky"]
    assert not row["valid"]
    assert "below the best" in row["reason"]
    assert math.isnan(row["t_exec_us"])


def test_a_form_that_fails_its_gate_keeps_a_row_without_times(monkeypatch):
    def off(self, pattern, value_N, w_LD):
        return torch.zeros(pattern.rows, w_LD.shape[1])

    monkeypatch.setattr(Bags, "gather_sum", off)
    shape = Shape(rows=8, width=4, latents=16, pairs=16)
    batch = Batch("grid", [synthetic(shape)], exponent=1.0, seed=0)
    rows = {
        (r.product, r.method): r
        for r in product_rows(batch, repeats=5, limits=ceilings(64, 1 << 20))
    }
    row = rows["gather_sum", "bags"]
    assert (row.valid, row.status, row.n_samples) == (False, "failed", 0)
    assert math.isnan(row.t_exec_us)
    assert rows["gather_sum", "dense"].valid


def test_figures_can_be_kept_and_choose_what_was_fastest(result):
    record = recorded(result, {"command": "test"}, "202611")
    assert {figure.product for figure in record.figures} == set(PRODUCTS)
    assert len(record.figures) == sum(
        bool(row["product"]) for row in rows_of(result.table("codes"))
    )
    assert record.meta["threads"] == torch.get_num_threads()
    assert record.meta["revision"]["version"]
    assert all(f.seconds_p20 <= f.seconds <= f.seconds_p80 for f in record.figures)


def test_a_kept_record_is_the_same_when_read(result, tmp_path):
    record = recorded(result, {"command": "test"}, "202611")
    assert Record.load(record.save(tmp_path)) == record


def row_of(method, ratio, microseconds, *, latents=1024):
    return Row(
        op="sparse_decode", product="gather_sum", method=method, control="grid", exponent=1.0, seed=0, rows=8,
        width=4, latents=latents, k=latents / ratio, pairs=round(8 * latents / ratio), ratio=ratio,
        popularity_gini=0.0, latents_hit=1, exec_flops=1.0, dense=method.startswith("dense"),
        t_total_us=microseconds, n_samples=5, valid=True,
    )  # fmt: skip


def test_ratios_at_which_a_form_failed_its_gate_are_passed_over():
    rows = [row_of("dense", ratio, 100.0) for ratio in (4.0, 16.0)]
    rows += [row_of("bags", 2.0, 10.0), row_of("bags", 4.0, 400.0), row_of("bags", 16.0, 25.0)]
    (found,) = crossovers(rows)
    assert found["ratio"] == pytest.approx(8.0)
    assert crossovers([row_of("dense", 4.0, 1.0)]) == crossovers([row_of("bags", 4.0, 1.0)]) == []


def test_the_crossover_lies_where_the_line_between_measured_speedups_is_one():
    rows = [row_of("dense", ratio, 100.0) for ratio in (4.0, 16.0)]
    rows += [row_of("bags", 4.0, 400.0), row_of("bags", 16.0, 100 / 4), row_of("csr", 16.0, 70.0)]
    (found,) = crossovers(rows)
    assert found["ratio"] == pytest.approx(8.0)
    assert (found["bound"], found["sparse"]) == ("measured", "bags")
    assert (found["speedup_lowest"], found["speedup_highest"]) == (0.25, 4.0)


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(2.0, 1.5, "a"), (8.0, 3.0, "a")], (2.0, "below")),
        ([(2.0, 0.5, "a"), (8.0, 0.9, "a")], (8.0, "above")),
        ([(2.0, 0.5, "a"), (8.0, 2.0, "a")], (4.0, "measured")),
        ([(2.0, 0.5, "a")], (2.0, "above")),
        ([(2.0, 1.06, "a"), (4.0, 0.5, "a"), (16.0, 2.0, "a")], (8.0, "measured")),
        ([(2.0, 0.5, "a"), (4.0, 1.2, "a"), (8.0, 0.5, "a"), (32.0, 2.0, "a")], (16.0, "measured")),
        ([(2.0, 1.2, "a"), (4.0, 0.9, "a")], (4.0, "above")),
    ],
    ids=[
        *("sparse wins everywhere", "dense wins everywhere", "bracketed", "one point"),
        *("noise at the low end", "crossed three times", "lost again"),
    ],
)
def test_a_crossover_that_was_not_bracketed_says_so(points, expected):
    ratio, bound = crossing(points)
    assert (pytest.approx(ratio), bound) == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [({"controls": ("shuffled",)}, "unknown-name.*idx_uniform"), ({"repeats": 2}, "bad-number.*5")],
)
def test_settings_that_measure_nothing_are_refused(change, said):
    with pytest.raises(UsageError, match=said):
        CodesBench(**change)


def test_a_measurement_is_not_made_twice(result, tmp_path):
    again = bench_codes(SMALL, result.path.parents[1], encoders=_encoders())
    assert again.path == result.path
    assert again.read_file("codes.parquet") == result.read_file("codes.parquet")
    assert again.card == result.card


def test_flops_and_limits_are_of_this_process(result):
    limits = dict(
        zip(result.table("ceilings")["quantity"], result.table("ceilings")["value"], strict=True)
    )
    for row in rows_of(result.table("codes")):
        if row["product"]:
            terms = (
                row["rows"] * row["latents"] * row["width"]
                if row["dense"]
                else row["pairs"] * row["width"]
            )
            assert row["exec_flops"] == 2 * terms
            peak = limits[
                "product bfloat16" if row["exec_precision"] == "bfloat16" else "product float32"
            ]
            floor = 1e6 * max(row["exec_flops"] / peak, row["bytes_compulsory"] / limits["copy"])
            assert row["floor_us"] == pytest.approx(floor)
            assert row["frac_of_limit"] == pytest.approx(floor / row["t_total_us"])
    assert set(products()) == set(PRODUCTS)


def test_the_verb_measures_and_keeps_where_it_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jobs.kernels.codes.records.FOLDER", tmp_path / "records")
    monkeypatch.setattr(Record.save, "__defaults__", (tmp_path / "records",))
    words = [
        "--latents",
        "32",
        "--k",
        "2,4",
        "--rows",
        "16",
        "--width",
        "8",
        "--repeats",
        "5",
        "--record",
    ]
    assert cli.main(["bench", "codes", *words, "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"] == 6
    assert sum(found["verdicts"].values()) == 6
    assert not found["failed"]
    (file,) = (tmp_path / "records").glob("codes_*.json")
    assert found["record"] == str(file)
    assert cli.main(["bench", "codes", *words, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "sparse overtakes dense at latents/k" in text
    assert "chosen forms against dense, 6 cases" in text


def test_a_store_without_such_codes_is_refused(tmp_path, capsys):
    url = tmp_path / "s"
    words = [
        "ingest",
        "--source",
        "synthetic:width=8,features=16,active=2",
        "--rows",
        "512",
        "--out",
        str(url),
    ]
    assert cli.main([*words, "--json"]) == 0
    assert (
        cli.main(["bench", "codes", "--on", str(url), "--out", str(tmp_path / "o"), "--json"]) == 1
    )
    said = "".join(capsys.readouterr())
    assert "no-codes" in said
    assert "groups with a dictionary's codes: none" in said
    assert not (tmp_path / "o").exists()
