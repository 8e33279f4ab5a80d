"""``actlake plan``: what it prints and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ingest.estimate import Prices
from ingest.models import toy
from jobs import cli
from jobs.config.prices import FIELDS


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a small ingest."""
    folder = tmp_path_factory.mktemp("plan")
    toy.save("llama", folder / "m")
    (folder / "text.txt").write_text(toy.TEXT * 4)
    return [
        "--model", str(folder / "m"), "--corpus", str(folder / "text.txt"), "--context", "48",
        "--part-rows", "256", "--sites", "blocks.*.resid_post,loss", "--dtype", "float32",
    ]  # fmt: skip


def test_it_says_before_what_ingest_says_after(words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "s"), "--json"]
    assert cli.main(["plan", *words, *out]) == 0
    before = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "s").exists()
    assert before["money"] is None
    assert cli.main(["ingest", *words, *out]) == 0
    after = json.loads(capsys.readouterr().out)
    assert (before["rows"], before["parts"]) == (after["rows"], after["parts"])
    assert before["group_bytes"] == after["planned_bytes"]
    assert set(before["columns"]) == set(after["sites"])
    assert (
        cli.main(
            ["plan", "--into", str(tmp_path / "s"), "--model", words[1], "--group", "b", "--json"]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["rows"] == after["rows"]


def test_it_reads_well(words, tmp_path, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("storage_gb_month: 0.02\nmachine_hour: 3.5\ncurrency: €\n")
    assert cli.main(["plan", *words, "--out", str(tmp_path / "s"), "--prices", str(prices)]) == 0
    text = capsys.readouterr().out
    assert "rows in" in text
    assert "blocks.1.resid_post" in text
    assert "operations" in text
    assert "€" in text
    assert "keeping" in text
    assert cli.main(["plan", "--source", "synth_bench", "--rows", "10k", "--out", "x"]) == 0
    assert "10,000 rows" in capsys.readouterr().out


def test_a_store_of_other_parts_is_refused_as_ingest_would(words, tmp_path, capsys):
    out = ["--out", str(tmp_path / "s")]
    assert cli.main(["ingest", *words, *out]) == 0
    assert cli.main(["plan", *words, *out]) == 0
    assert cli.main(["plan", *words, *out, "--part-rows", "512"]) == 1
    assert "store-differs" in capsys.readouterr().err


def test_what_computing_costs_must_be_said_to_compare(words, tmp_path, capsys):
    prices = tmp_path / "prices.yaml"
    prices.write_text("storage_gb_month: 0.02\n")
    assert cli.main(["plan", *words, "--out", "x", "--prices", str(prices)]) == 0
    assert "computing has no price" in capsys.readouterr().out


def test_the_fields_are_those_of_prices():
    assert tuple(one.name for one in dataclasses.fields(Prices)) == FIELDS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("storage: 1", "unknown: storage"),
        ("machine_hour: 1", "no storage_gb_month"),
        ("storage_gb_month: -1", "storage_gb_month is -1"),
        ("storage_gb_month: .nan", "storage_gb_month is nan"),
        ("storage_gb_month: cheap", "storage_gb_month is 'cheap'"),
        ("storage_gb_month: true", "storage_gb_month is True"),
        ("storage_gb_month: 1\ncurrency: null", "currency is None"),
        ("storage_gb_month: 1e300", "storage_gb_month is"),
        ("- storage_gb_month", "it holds list"),
        ("", "it holds NoneType"),
        ("storage_gb_month", "it holds str"),
        ("storage_gb_month: 1\nmachine_flops: 0", "machine_flops is 0"),
        ("- 1\n- 2", "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_prices_that_are_none_are_refused(words, tmp_path, capsys, text, said):
    prices = tmp_path / "prices.yaml"
    if text is not None:
        prices.write_text(text)
    assert cli.main(["plan", *words, "--out", "x", "--prices", str(prices)]) == 2
    error = capsys.readouterr().err
    assert "bad-prices" in error
    assert said in error
    assert "Nothing was started" in error


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        (["--sites", "blocks.7.attn.z"], "unknown-site"),
        (["--metric", "nll"], "usage"),
        (["--context", "5000"], "context-too-long"),
        (["--stats", "nosuch"], "unknown-name"),
        (["--into", "y"], "usage"),
        (["--group", "tokens"], "name-taken"),
    ],
)
def test_what_ingest_refuses_it_refuses(words, capsys, more, kind):
    assert cli.main(["plan", *words, "--out", "x", *more]) != 0
    assert kind in capsys.readouterr().err
