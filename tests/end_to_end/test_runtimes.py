"""One ingest, three runtimes: the same digest in each, and where a run moves from one to another half way."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import store

SITES = "blocks.{0,1}.resid_post,blocks.1.attn.z"
PARTS = 16


def _words(url: Path, corpus: Path, model: Path, dtype: str, *more: str) -> list[str]:
    words = [sys.executable, "-m", "jobs.cli", "ingest", "--model", model, "--corpus", corpus]
    words += ["--out", url, "--sites", SITES, "--context", "32", "--part-rows", "256"]
    return [str(word) for word in [*words, "--batch", "2", "--dtype", dtype, "--json", *more]]


def _digest(url: Path) -> str:
    opened = store.open(url)
    assert opened.coverage["acts"].sealed
    report = store.verify(opened)
    assert report.ok, report.problems
    assert len(opened.view.parts("acts")) >= PARTS
    return report.digest


def _run(words: list[str]) -> dict:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return json.loads(done.stdout)


def _stopped(words: list[str], url: Path, parts: int) -> None:
    """Run an ingest and kill it as soon as some parts are committed."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(list(url.glob("groups/acts/commits/*/*"))) < parts:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    said = process.communicate()
    assert process.returncode in {0, -signal.SIGKILL}, said


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, model, dtype):
    """The digest an undisturbed ingest in one process comes to."""
    url = tmp_path_factory.mktemp("whole") / "s"
    _run(_words(url, corpus, model, dtype))
    return _digest(url)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 3])
def test_shards_that_start_at_once_make_the_same_store(
    tmp_path, corpus, model, dtype, whole, count
):
    url = tmp_path / "s"
    words = [_words(url, corpus, model, dtype, "--shard", f"{i}/{count}") for i in range(count)]
    running = [subprocess.Popen(w, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for w in words]
    said = [process.communicate(timeout=200) for process in running]
    assert [process.returncode for process in running] == [0] * count, said
    summaries = [json.loads(out) for out, _ in said]
    assert sum(summary["new_rows"] for summary in summaries) == summaries[0]["rows"]
    assert min(summary["left_parts"] for summary in summaries) == 0
    assert _digest(url) == whole


@pytest.mark.slow
def test_a_shard_alone_leaves_the_group_open(tmp_path, corpus, model):
    found = _run(_words(tmp_path / "s", corpus, model, "float32", "--shard", "1/2"))
    opened = store.open(tmp_path / "s")
    assert not opened.coverage["acts"].sealed
    assert all(part % 2 == 1 for part in opened.view.parts("acts"))
    assert found["left_parts"] == found["parts"] - len(opened.view.parts("acts"))


@pytest.mark.cluster
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "more", [(), ("--workers", "2", "--threads", "1")], ids=["one", "two workers"]
)
def test_ray_makes_the_same_store(tmp_path, corpus, model, dtype, whole, more):
    found = _run(_words(tmp_path / "s", corpus, model, dtype, "--runtime", "ray", *more))
    assert found["new_rows"] == found["rows"]
    assert found["left_parts"] == 0
    assert _digest(tmp_path / "s") == whole


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_run_may_move_from_one_runtime_to_another(tmp_path, corpus, model, dtype, whole):
    url = tmp_path / "s"
    _stopped(_words(url, corpus, model, dtype), url, 3)
    _stopped(_words(url, corpus, model, dtype, "--runtime", "ray"), url, 8)
    begun = len(store.open(url).view.parts("acts"))
    for shard in ("0/2", "1/2"):
        _run(_words(url, corpus, model, dtype, "--shard", shard))
    assert begun >= 3
    assert _digest(url) == whole


@pytest.mark.cluster
@pytest.mark.timeout(200)
@pytest.mark.parametrize("whom", ["the driver", "the terminal"])
def test_an_interrupt_ends_a_ray_run_cleanly_within_30_seconds(tmp_path, corpus, model, whom):
    url = tmp_path / "s"
    words = _words(url, corpus, model, "float32", "--runtime", "ray", "--batch", "1")
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while process.poll() is None and not list(url.glob("groups/acts/commits/*/*")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    began = time.monotonic()
    if whom == "the driver":
        process.send_signal(signal.SIGTERM)
    else:  # Ctrl-C goes to every process of the terminal
        os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert time.monotonic() - began < 30
    if process.returncode != 0:  # on a fast machine it may have been done already
        assert process.returncode == 130, err
        assert "run the same again to go on" in err
        assert "Traceback" not in err
    report = store.verify(store.open(url))
    assert report.ok
    assert not report.orphans
    found = _run(_words(url, corpus, model, "float32", "--batch", "1"))
    assert found["left_parts"] == 0


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_codes_and_evaluations_are_the_same_through_ray(tmp_path, front_door):
    url = tmp_path / "s"
    words = ["--source", "synthetic:width=32,features=64,active=3", "--rows", "6000", "--json"]
    assert front_door("ingest", *words, "--out", url, "--part-rows", "1024")[0] == 0
    words = ["--site", "x", "--out", tmp_path / "run", "--latents", "64", "--k", "3", "--json"]
    code, out, _ = front_door("train", url, *words, "--rows", "4096", "--batch-rows", "512")
    assert code == 0
    book = json.loads(out)[0]["result"]
    found = {}
    for name, more in {"here": (), "ray": ("--runtime", "ray", "--workers", "2")}.items():
        encode = ["encode", book, "--on", url, "--group", f"codes.{name}", "--json", *more]
        assert front_door(*encode)[0] == 0
        evaluate = ["eval", book, "--on", url, "--split", "all", "--out", tmp_path / name]
        code, out, _ = front_door(*evaluate, "--json", *more)
        assert code == 0
        figures = {key: value for key, value in json.loads(out).items() if key != "result"}
        codes = store.open(url).arrow(f"codes.{name}")
        assert store.open(url).coverage[f"codes.{name}"].sealed
        found[name] = (figures, codes)
    assert found["here"][0] == found["ray"][0]
    assert found["here"][1].equals(found["ray"][1])
    assert found["here"][1].num_rows > 6000
