"""SIGKILL a real ingest at random moments: rerun, same digest, and the same dictionary trained on it.

The loop over model processes takes minutes and runs by hand: ``pytest -m loops tests/end_to_end``.
"""

import contextlib
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import store

SITE = "blocks.1.resid_post"
KILLS = 50


def _words(url: Path, corpus: Path, model: Path) -> list[str]:
    words = [sys.executable, "-m", "jobs.cli", "ingest", "--model", model, "--corpus", corpus]
    words += [
        "--out",
        url,
        "--sites",
        SITE,
        "--context",
        "32",
        "--part-rows",
        "256",
        "--batch",
        "2",
    ]
    return [str(word) for word in [*words, "--dtype", "bfloat16", "--json"]]


def _kill_once(words: list[str], url: Path, after_seconds: float) -> bool:
    """Start an ingest and kill it some time after it began to write; return whether it was still running."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (url / "store.json").exists():
        time.sleep(0.005)
    time.sleep(after_seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


def _dictionary(url: Path, out: Path) -> str:
    from jobs import cli

    words = ["train", url, "--site", SITE, "--out", out, "--latents", "64", "--k", "4", "--json"]
    words += ["--batch-rows", "256", "--rows", "5120"]
    assert cli.main([str(word) for word in words]) == 0
    (weights,) = out.glob("results/*/dictionary.safetensors")
    card = weights.with_name("dictionary.json")
    return weights.read_bytes().hex() + card.read_text()


@pytest.mark.loops
@pytest.mark.timeout(3600)
def test_fifty_kills_leave_the_same_store_and_the_same_dictionary(tmp_path, corpus, model, capsys):
    whole = tmp_path / "whole"
    began = time.monotonic()
    subprocess.run(_words(whole, corpus, model), check=True, capture_output=True)
    took = time.monotonic() - began
    want = store.open(whole).digest()
    parts = len(store.open(whole).view.parts("acts"))
    assert parts > 15
    trained = _dictionary(whole, tmp_path / "whole-run")
    rng = random.Random(20)
    interrupted = orphaned = 0
    for number in range(KILLS):
        url = tmp_path / f"killed-{number}"
        words = _words(url, corpus, model)
        span = rng.choice([0.3, 1.0]) * min(took, 3.0)
        interrupted += _kill_once(words, url, rng.uniform(0, span))
        orphaned += bool(_readable(url).orphans)
        subprocess.run(words, check=True, capture_output=True)
        again = store.open(url)
        report = store.verify(again)
        assert report.ok, report.problems
        assert report.digest == want
        commits = {
            again.view.commit(g, p).attempt for g in again.groups for p in again.view.parts(g)
        }
        assert not {Path(orphan).name for orphan in report.orphans} & commits
        if number % 10 == 0:
            assert _dictionary(url, tmp_path / f"run-{number}") == trained
    with capsys.disabled():
        sys.stdout.write(f"\n{KILLS} kills, {interrupted} mid-run, {orphaned} with orphans\n")
    assert interrupted > KILLS // 2


def _readable(url: Path) -> store.Report:
    """Verify a killed store as it lies: whatever is committed is whole."""
    report = store.verify(store.open(url))
    assert report.ok, report.problems
    return report


def test_ctrl_c_ends_an_ingest_cleanly_and_it_goes_on(tmp_path, corpus, model):
    url = tmp_path / "s"
    words = _words(url, corpus, model)
    words.remove("--json")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(url.glob("groups/acts/commits/*/*")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # on a fast machine it may have been done already
        assert process.returncode == 130
        assert "run the same again to go on" in err
        assert "Traceback" not in err
    assert not store.verify(store.open(url)).orphans
    subprocess.run(words, check=True, capture_output=True)
    assert store.open(url).coverage["acts"].sealed
