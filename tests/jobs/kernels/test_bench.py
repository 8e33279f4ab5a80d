"""``bench attention`` from a store to tables: what is claimed, what is refused, what is the same twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import store
from jobs import cli
from jobs.errors import RefusedError
from jobs.kernels import bench as bench_module
from jobs.kernels import gate, timing
from jobs.kernels.bench import FidelityWorker, bench_attention
from jobs.kernels.settings import AttentionBench
from jobs.results import Result
from jobs.runtimes.in_process import InProcess
from jobs.sequences import model_facts

SMALL = {"block": 8, "densities": (0.3, 1.0), "sequences": 3, "controls": ("gauss_iid", "perm_tok")}


@pytest.fixture(scope="module")
def measured(urls, tmp_path_factory):
    """One run with times and a longer shape."""
    out = tmp_path_factory.mktemp("out")
    config = AttentionBench(layers=(0, 1), repeats=5, lengths=(100,), **SMALL)
    return bench_attention(store.open(urls["llama"]), config, out)


def rows_of(result, name):
    table = result.table(name)
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def test_there_is_a_row_for_every_combination_and_all_are_valid(measured):
    rows = rows_of(measured, "attention")
    keys = {(r["layer"], r["sample_id"], r["control"], r["method"], r["budget"]) for r in rows}
    assert len(rows) == len(keys) == 2 * 3 * 3 * 4 * 2
    assert all(r["valid"] and r["status"] == "ok" and r["head"] == -1 for r in rows)
    assert len({r["document"] for r in rows}) == 3


def test_full_budgets_miss_nothing_and_smaller_ones_do(measured):
    for row in rows_of(measured, "attention"):
        if row["budget"] == 1.0:
            assert row["out_rel_err_max"] <= 1e-5
            assert row["mass_recall"] == 1.0
            assert row["rho_tile"] == row["rho_token"] == 1.0
        else:
            assert row["mass_recall"] < 1.0
            assert row["regret"] >= -1e-6
            assert row["rho_tile"] < 1.0


def test_heads_are_means_over_documents(measured):
    heads = rows_of(measured, "attention_heads")
    assert len(heads) == 2 * 3 * 4 * 2 * 4
    assert {r["head"] for r in heads} == set(range(4))
    assert all(r["documents"] == 3 for r in heads)
    samples = rows_of(measured, "attention")
    cell = {"layer": 1, "control": "real", "method": "oracle", "budget": 0.3}
    mine = [r for r in samples if all(r[n] == v for n, v in cell.items())]
    ours = [r for r in heads if all(r[n] == v for n, v in cell.items())]
    assert np.mean([r["mass_recall"] for r in mine]) == pytest.approx(
        np.mean([r["mass_recall"] for r in ours]), rel=1e-6
    )


def test_gains_are_real_less_control_with_intervals_over_documents(measured):
    gains = rows_of(measured, "structure")
    assert {r["control"] for r in gains} == {"gauss_iid", "perm_tok"}
    assert all(r["documents"] == 3 for r in gains if r["metric"] == "mass_recall")
    for row in gains:
        if row["metric"] == "mass_recall":
            assert row["gain"] == pytest.approx(row["real"] - row["control_value"], abs=1e-9)
            assert row["low"] <= row["gain"] <= row["high"]
        if row["metric"] == "mass_recall" and row["budget"] == 1.0:
            assert row["gain"] == 0.0


def test_times_say_what_they_are_of(measured):
    rows = rows_of(measured, "timing")
    assert {(r["claim"], r["Nq"]) for r in rows} == {("stored length", 44), ("shape only", 100)}
    for row in rows:
        assert row["valid"]
        assert row["n_samples"] == 5
        assert row["threads"] >= 1
        assert json.loads(row["lib_versions"])["torch"]
        assert row["t_plan_us"] > 0
        assert row["t_exec_us"] > 0
        assert row["speedup_best"] == pytest.approx(row["t_dense_best_us"] / row["t_total_us"])
        assert row["verdict"] in {"faster", "slower", "no difference"}
    assert [r["quantity"] for r in rows_of(measured, "ceilings")][-1] == "copy"


def test_timed_plans_can_be_replayed(measured):
    from jobs.kernels.plan import BlockPlan

    arrays = measured.tensors("plans")
    one = {
        n.removeprefix("1/oracle@0.3/"): a
        for n, a in arrays.items()
        if n.startswith("1/oracle@0.3/")
    }
    again = BlockPlan.deserialise(one)
    assert again.stats["planner"] == "oracle"
    assert again.geometry.queries == 44


def test_the_same_question_is_answered_once(measured, urls):
    config = AttentionBench(layers=(0, 1), repeats=5, lengths=(100,), **SMALL)
    again = bench_attention(store.open(urls["llama"]), config, measured.path.parent.parent)
    assert again.done
    assert again.path == measured.path


def test_a_run_in_any_order_gives_the_same_tables(measured, urls, tmp_path):
    class Backwards(InProcess):
        def map(self, make_worker, parts):
            return super().map(make_worker, list(parts)[::-1])

    config = AttentionBench(layers=(0, 1), repeats=0, **SMALL)
    result = bench_attention(store.open(urls["llama"]), config, tmp_path, runtime=Backwards())
    assert set(result.tables()) == {"attention", "attention_heads", "structure"}
    for name in result.tables():
        ours, theirs = measured.table(name), result.table(name)
        assert set(ours) == set(theirs)
        for column in ours:
            one, other = np.asarray(ours[column]), np.asarray(theirs[column])
            assert np.array_equal(one, other, equal_nan=one.dtype.kind == "f"), (name, column)


def test_workers_travel(urls):
    import pickle
    from functools import partial

    from jobs.kernels.inputs import columns_of, samples_of
    from jobs.sequences import model_facts

    held = store.open(urls["llama"])
    facts = model_facts(held)
    columns = columns_of(held, facts, 0)
    config = AttentionBench(layers=(0,), **SMALL)
    samples = tuple(samples_of(held, columns.parts, 1))
    make = partial(FidelityWorker, held.url, facts, (columns,), samples, config)
    rows = pickle.loads(pickle.dumps(make))().run(0)
    assert len(rows) == 3 * 4 * 2


def test_a_red_gate_gives_no_time(urls, tmp_path, monkeypatch):
    monkeypatch.setitem(gate.TOLERANCE, "float32", (0.0, 0.0))
    config = AttentionBench(layers=(1,), repeats=5, **SMALL)
    result = bench_attention(store.open(urls["llama"]), config, tmp_path)
    failed = [r for r in rows_of(result, "timing") if not r["valid"]]
    assert failed
    assert all(r["status"] == "failed" and "against the reference" in r["reason"] for r in failed)
    assert all(np.isnan(r.get("t_exec_us", np.nan)) for r in failed)


def test_a_wrong_executor_makes_rows_invalid_and_they_count_nowhere(urls, tmp_path, monkeypatch):
    from jobs.kernels import fidelity

    monkeypatch.setattr(fidelity, "SELF_CHECK", -1.0)
    config = AttentionBench(layers=(1,), repeats=0, **SMALL)
    result = bench_attention(store.open(urls["llama"]), config, tmp_path)
    rows = rows_of(result, "attention")
    assert not any(r["valid"] for r in rows)
    assert all("disagree" in r["reason"] for r in rows)
    assert rows_of(result, "attention_heads") == []
    assert rows_of(result, "structure") == []


SPOILS = {
    "zeros": torch.zeros_like,
    "nan": lambda o: o * float("nan"),
    "heads swapped": lambda o: o.flip(1),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_wrong_output_with_a_right_log_sum_exp_makes_rows_invalid(
    urls, tmp_path, monkeypatch, spoil
):
    from jobs.kernels.executors.torch_blocks import TorchBlocks

    run = TorchBlocks.run

    def spoilt(self, qkv, plan):
        o, lse = run(self, qkv, plan)
        return spoil(o), lse

    monkeypatch.setattr(TorchBlocks, "run", spoilt)
    config = AttentionBench(layers=(1,), repeats=0, **SMALL)
    rows = rows_of(bench_attention(store.open(urls["llama"]), config, tmp_path), "attention")
    assert not any(r["valid"] for r in rows)
    assert all("against the reference" in r["reason"] for r in rows)


def test_failed_measurements_are_told_and_the_exit_code_says_so(
    urls, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(gate.TOLERANCE, "float32", (-1.0, -1.0))
    words = ["bench", "attention", urls["llama"], "--layer", "1", "--sequences", "1"]
    words += ["--block", "8", "--repeats", "0", "--out", tmp_path]
    assert cli.main([str(word) for word in words]) == 1
    assert "measurements failed: output off by" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("executor", "precision"), [("reference", "float64"), ("torch_blocks", "bfloat16")]
)
def test_every_precision_an_executor_has_is_measured(urls, tmp_path, executor, precision):
    config = AttentionBench(layers=(1,), repeats=5, executor=executor, precision=precision, **SMALL)
    result = bench_attention(store.open(urls["llama"]), config, tmp_path)
    assert all(r["valid"] for r in rows_of(result, "attention"))
    assert all(r["valid"] for r in rows_of(result, "timing"))


def test_nothing_is_looked_at_beyond_the_trained_length(urls, tmp_path):
    held = store.open(urls["llama"])
    facts = replace(model_facts(held), trained_length=20)
    config = AttentionBench(layers=(1,), repeats=5, lengths=(100,), **SMALL)
    result = bench_attention(held, config, tmp_path, facts=facts)
    assert {r["Nq"] for r in rows_of(result, "attention")} == {20}
    claims = {(r["claim"], r["Nq"]) for r in rows_of(result, "timing")}
    assert claims == {("stored length", 20), ("shape only", 100)}
    assert result.card.config["trained_length"] == 20


def test_times_of_other_threads_are_another_result(urls, tmp_path, monkeypatch):
    held = store.open(urls["llama"])
    for repeats, results in ((0, 1), (5, 2)):
        config = AttentionBench(layers=(1,), repeats=repeats, **SMALL)
        found = set()
        for threads in (1, 2):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            found.add(bench_attention(held, config, tmp_path).path)
        assert len(found) == results


def test_nothing_is_measured_on_tensors_that_drift(urls, tmp_path, monkeypatch):
    from jobs.errors import JobError
    from jobs.kernels import inputs

    monkeypatch.setattr(inputs, "DRIFT", 1e-9)
    config = AttentionBench(layers=(1,), repeats=0, **SMALL)
    with pytest.raises(JobError, match="drift: attention of layer 1"):
        bench_attention(store.open(urls["llama"]), config, tmp_path)
    [folder] = (tmp_path / "results").iterdir()
    assert Result.open(folder).card.outcome == "failed: drift"
    assert Result.open(folder).tables() == []


def test_a_bidirectional_model_is_refused_a_causal_planner_and_takes_others(urls, tmp_path):
    held = store.open(urls["bert"])
    with pytest.raises(
        RefusedError, match=r"causal-planner: planner 'moba'.*--planners oracle,random"
    ):
        bench_attention(held, AttentionBench(layers=(1,), **SMALL), tmp_path)
    assert not (tmp_path / "results").exists()
    config = AttentionBench(layers=(1,), planners=("oracle", "random"), repeats=0, **SMALL)
    result = bench_attention(held, config, tmp_path)
    assert all(r["valid"] and not r["causal"] for r in rows_of(result, "attention"))


def test_what_a_planner_refuses_is_a_row_with_its_reason(urls, tmp_path, monkeypatch):
    from jobs.kernels.planners.oracle import Oracle

    def refuse(self, qkv, tiles, budget):
        raise RefusedError("no.", kind="empty-row")

    monkeypatch.setattr(Oracle, "plan", refuse)
    config = AttentionBench(layers=(1,), planners=("oracle", "random"), repeats=5, **SMALL)
    result = bench_attention(store.open(urls["llama"]), config, tmp_path)
    rows = [r for r in rows_of(result, "attention") if r["method"] == "oracle"]
    assert rows
    assert all(
        (r["valid"], r["status"], r["reason"]) == (False, "refused", "empty-row: no.") for r in rows
    )
    assert {r["status"] for r in rows_of(result, "timing") if r["method"] == "random"} == {"ok"}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"planners": ("guess",)}, "unknown-name.*guess"),
        ({"controls": ("placebo",)}, "unknown-name.*placebo"),
        ({"executor": "magic"}, "unknown-name.*magic"),
        ({"precision": "int4"}, "int4"),
        ({"block": 0}, "bad-tiles"),
        ({"plan_heads": "both"}, "bad-tiles"),
        ({"densities": (0.5, 2.0)}, "bad-budget"),
        ({"sequences": 0}, "bad-number"),
        ({"layers": ()}, "bad-number"),
        ({"repeats": 3}, "bad-number"),
        ({"lengths": (0,)}, "bad-number"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_refused_at_once(wrong, said):
    from store.errors import ActlakeError

    with pytest.raises(ActlakeError, match=said):
        AttentionBench(**{"layers": (0,), **wrong})


def command(capsys, *words):
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_verb_answers_in_json_and_text_from_flags_and_from_a_file(urls, tmp_path, capsys):
    words = ["bench", "attention", urls["llama"], "--layer", "1", "--block", "8", "--repeats", "0"]
    words += [
        "--densities",
        ".25,1",
        "--sequences",
        "3",
        "--controls",
        "gauss_iid",
        "--out",
        tmp_path,
    ]
    code, answer = command(capsys, *words)
    assert code == 0
    assert Path(answer["result"]).name.startswith("bench-")
    assert [(r["method"], r["budget"]) for r in answer["rows"]][:2] == [
        ("moba", 0.25),
        ("moba", 1.0),
    ]
    assert set(answer["rows"][0]["recall_gain"]) == {"gauss_iid"}
    assert cli.main([*map(str, words), "--show-config"]) == 0
    file = tmp_path / "bench.yaml"
    file.write_text(capsys.readouterr().out)
    assert command(capsys, "bench", "attention", "--config", file) == (0, answer)
    assert cli.main(list(map(str, words))) == 0
    assert "oracle" in capsys.readouterr().out


def test_bad_words_are_answered_as_errors_of_their_kind(urls, tmp_path, capsys):
    words = ["bench", "attention", urls["llama"], "--out", tmp_path, "--repeats", "0"]
    code, answer = command(capsys, *words, "--layer", "7")
    assert (code, answer["error"]["kind"]) == (1, "unknown-site")
    code, answer = command(capsys, *words, "--layer", "1", "--densities", "1.5")
    assert code == 2
    code, answer = command(capsys, *words, "--layer", "1", "--controls", "placebo")
    assert (code, answer["error"]["kind"]) == (2, "unknown-name")
    words[2] = urls["bert"]
    code, answer = command(capsys, *words, "--layer", "1")
    assert (code, answer["error"]["kind"]) == (3, "causal-planner")
    code, answer = command(capsys, "bench", "sort")
    assert (code, answer["error"]["kind"]) == (2, "unknown-name")
    assert "bench attention" in answer["error"]["message"]


def test_the_family_lists_its_members(capsys):
    assert cli.main(["bench", "--help"]) == 0
    out = capsys.readouterr().out
    assert "bench attention" in out
    assert "train" not in out


def test_step_is_told_of_every_phase(urls, tmp_path):
    said = []
    config = AttentionBench(layers=(1,), repeats=5, **SMALL)
    bench_attention(
        store.open(urls["llama"]), config, tmp_path, step=lambda *words: said.append(words)
    )
    assert [phase for phase, done, total in said if done == total] == ["check", "fidelity", "time"]
    assert bench_module.__doc__


def test_a_wrong_baseline_gives_no_time(urls, tmp_path, monkeypatch):
    monkeypatch.setattr(timing.baseline, "run", lambda qkv: qkv.q)
    config = AttentionBench(layers=(1,), repeats=5, **SMALL)
    rows = rows_of(bench_attention(store.open(urls["llama"]), config, tmp_path), "timing")
    assert rows
    assert all(not r["valid"] and "the dense baseline (sdpa)" in r["reason"] for r in rows)


def test_every_column_is_there_whatever_was_found(measured, urls, tmp_path, monkeypatch):
    monkeypatch.setitem(gate.TOLERANCE, "float32", (-1.0, -1.0))
    config = AttentionBench(layers=(1,), repeats=5, **{**SMALL, "controls": ()})
    result = bench_attention(store.open(urls["llama"]), config, tmp_path)
    for name in measured.tables():
        assert set(result.table(name)) == set(measured.table(name)), name
