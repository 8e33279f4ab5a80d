"""The front door: grids, files and flags, JSON, exit codes, clean stops."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

import store
from jobs import cli


@pytest.fixture(scope="module")
def url(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "s"
    words = ["ingest", "--source", "synthetic:width=32,features=64,active=3", "--rows", "6000"]
    assert cli.main([*words, "--out", str(folder), "--part-rows", "2048", "--json"]) == 0
    return folder


def _json(capsys, *words):
    code = cli.main([*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_help_needs_no_heavy_library():
    code = "import sys; from jobs import cli; cli.main(['--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"torch", "transformers", "polars", "ray", "matplotlib", "zarr"}
    assert "demo" in done.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert f"Example: actlake {verb}" in " ".join(out.split())


def test_commas_make_a_grid(url, tmp_path, capsys):
    words = ["train", url, "--site", "x", "--out", tmp_path, "--latents", "32,64", "--k", "2,3"]
    code, found = _json(capsys, *words, "--rows", "2048", "--batch-rows", "512")
    assert code == 0
    assert [(a["latents"], a["k"]) for a in found] == [(32, 2), (32, 3), (64, 2), (64, 3)]
    assert len({a["result"] for a in found}) == len({a["sha"] for a in found}) == 4
    again = _json(capsys, *words, "--rows", "2048", "--batch-rows", "512")[1]
    assert again == found


def test_a_file_and_flags_and_python_are_one(url, tmp_path, capsys):
    file = tmp_path / "train.yaml"
    settings = {"site": "x", "latents": [32], "k": [2], "rows": 1024, "batch_rows": 512}
    file.write_text(yaml.safe_dump({**settings, "url": str(url), "out": str(tmp_path / "a")}))
    from_file = _json(capsys, "train", "--config", file)[1]
    words = ["--site", "x", "--latents", "32", "--k", "2", "--rows", "1024", "--batch-rows", "512"]
    from_flags = _json(capsys, "train", url, *words, "--out", tmp_path / "b")[1]
    assert from_file[0]["sha"] == from_flags[0]["sha"]
    flags_win = _json(capsys, "train", "--config", file, "--k", "3")[1]
    assert flags_win[0]["k"] == 3


def test_show_config_prints_what_config_reads(url, tmp_path, capsys):
    words = ["train", str(url), "--site", "x", "--latents", "4k,16k", "--rows", "400k"]
    assert cli.main([*words, "--show-config"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["latents"] == [4096, 16384]
    assert yaml.safe_load(shown)["rows"] == 400_000
    file = tmp_path / "c.yaml"
    file.write_text(shown)
    verb = cli.VERBS["train"][0]
    assert cli.parse(verb, ["--config", str(file)], prog="t").latents == (4096, 16384)
    again = cli.parse(verb, words[1:], prog="t")
    read = cli.parse(verb, ["--config", str(file)], prog="t")
    assert {**vars(read), "config": None} == vars(again)


def test_eval_encode_query_and_report_follow_one_another(url, tmp_path, capsys):
    words = ["train", url, "--site", "x", "--out", tmp_path, "--latents", "64", "--k", "3"]
    trained = _json(capsys, *words, "--rows", "20k", "--batch-rows", "512")[1][0]["result"]
    evaluated = _json(capsys, "eval", trained, "--on", url, "--split", "all")[1]
    assert Path(evaluated["result"]).parent == tmp_path / "results"
    assert 0 < evaluated["fvu"] < 0.6
    encoded = _json(capsys, "encode", trained, "--on", url, "--group", "mine")[1]
    assert encoded["rows"] == 6000
    rows = _json(capsys, "query", url, "SELECT count(*) AS n, max(value) AS top FROM mine")[1]
    assert rows[0]["n"] == encoded["codes"]
    truth = _json(capsys, "query", url, "SELECT count(*) AS n FROM truth")[1][0]["n"]
    assert 2.5 < truth / 6000 < 3.5
    page = tmp_path / "r.html"
    words = [trained, evaluated["result"], "--on", url, "--out", page]
    assert _json(capsys, "report", *words)[0] == 0
    assert "<svg" in page.read_text(encoding="utf-8")
    tables = {t["table"]: t for t in _json(capsys, "tables", url)[1]}
    assert set(tables) >= {"tokens", "sequences", "documents", "acts", "mine", "truth"}
    assert tables["mine"]["rows"] == encoded["codes"]


def test_verify_and_inspect_answer_in_json(url, capsys):
    code, report = _json(capsys, "verify", url)
    assert code == 0
    assert report["ok"]
    assert report["digest"] == store.open(url).digest()
    summary = _json(capsys, "inspect", url)[1]
    assert [g["name"] for g in summary["groups"]][:2] == ["tokens", "acts"]
    assert cli.main(["inspect", str(url)]) == 0
    assert "acts: 6,000 rows" in capsys.readouterr().out


def test_a_planted_dictionary_is_as_it_was_planted(url):
    from safetensors.numpy import load

    opened = store.open(url)
    truth = load(opened.asset(opened.groups["acts"].recipe["truth"])["truth.safetensors"])
    codes = opened.arrow("truth")
    x = np.zeros((6000, 32), np.float32)
    slot = np.searchsorted(opened.row_ids(), codes["row"].to_numpy())
    np.add.at(
        x, slot, codes["value"].to_numpy()[:, None] * truth["features"][codes["latent"].to_numpy()]
    )
    assert np.allclose(opened.read("acts:x"), x, atol=1e-5)


def test_usage_errors_exit_with_2(capsys):
    assert cli.main([]) == 2
    assert cli.main(["brew"]) == 2
    with pytest.raises(SystemExit) as end:
        cli.main(["train"])
    assert end.value.code == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_training_at_a_checkpoint_and_it_goes_on(url, tmp_path, number):
    words = [sys.executable, "-m", "jobs.cli", "train", str(url), "--site", "x", "--latents", "64"]
    words += ["--k", "3", "--rows", "2M", "--batch-rows", "512", "--out"]
    process = subprocess.Popen([*words, str(tmp_path / "a")], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("a/results/*/log.jsonl")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    (card,) = tmp_path.glob("a/results/*/card.json")
    assert json.loads(card.read_text())["outcome"] == "interrupted"
    assert list(card.parent.glob("checkpoints/*"))
