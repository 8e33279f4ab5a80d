"""How a harvest grows: peak memory with the corpus, and rows a second with workers.

    python tests/bench/harvest_scale.py --folder /tmp/h                  # both
    python tests/bench/harvest_scale.py --folder /tmp/h --only memory    # 3 000 and 30 000 documents
    python tests/bench/harvest_scale.py --folder /tmp/h --only workers   # one process and two, by --shard
    python tests/bench/harvest_scale.py --folder /tmp/h --small          # checks that it runs; figures mean nothing

Memory is the peak of a process' resident set (VmHWM) over a whole ingest, tokens included; every size has a process of its own.
Workers are processes of one thread each that share a group's parts; they take turns with one process, and a ratio is of one
round: its median and both ends.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ingest.models import bundled_causal

BUDGET = 0.15
SITES = "blocks.2.resid_post,blocks.5.resid_post"


def corpus(folder: Path, documents: int) -> Path:
    """Write documents of fifty words, all different, and return their folder."""
    from pydoc_data.topics import topics

    words = " ".join(topics.values()).split()
    drawn = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "c.jsonl").open("w") as file:
        for number in range(documents):
            at = drawn.randrange(len(words) - 60)
            text = f"{number} " + " ".join(words[at : at + 50])
            file.write(json.dumps({"text": text}) + "\n")
    return folder


INGEST = """
import json, sys
from jobs.cli import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
sys.stderr.write("peak " + peak.split()[1])
sys.exit(code)
"""


def actlake(*words: object, threads: int | None = None) -> subprocess.Popen[str]:
    """Start the command line in a process of its own; it says its peak on the last line of its errors."""
    env = dict(os.environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-c", INGEST, *map(str, words), "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=env)


def ended(process: subprocess.Popen[str]) -> tuple[dict[str, Any], float]:
    """Return what a command answered, and its peak in MB."""
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"it failed:\n{out}{err[-2000:]}")
    answer = json.loads(out)
    return answer.get("result", answer), int(err.rpartition("peak ")[2]) / 1024


def memory(folder: Path, model: str, sizes: Sequence[int]) -> dict[str, Any]:
    """Return the peak of an ingest of each corpus."""
    found = []
    for documents in sizes:
        texts = corpus(folder / f"corpus-{documents}", documents)
        words = ("ingest", "--model", model, "--corpus", texts, "--out", folder / f"s-{documents}")
        more = ("--sites", "blocks.0.resid_post", "--context", 128, "--lanes")
        answer, peak = ended(actlake(*words, *more))
        found.append({"documents": documents, "rows": answer["rows"], "peak_mb": peak})
    beside = 16 * sizes[-1] / 2**20
    growth = (found[-1]["peak_mb"] - beside) / found[0]["peak_mb"] - 1
    for one in found:
        sys.stdout.write(
            f"{one['documents']:>8,} documents {one['rows']:>10,} rows: peak {one['peak_mb']:,.0f} MB\n"
        )
    verdict = "met" if growth <= BUDGET else "MISSED"
    sys.stdout.write(
        f"growth {growth:+.1%} beside 16 bytes a document (≤ {BUDGET:.0%} {verdict})\n"
    )
    return {"sizes": found, "growth": growth}


def workers(folder: Path, model: str, rows: int, repeats: int) -> dict[str, Any]:
    """Return how many times as fast two workers are as one."""
    made = folder / "shared"
    source = ("ingest", "--model", model, "--source", "stdlib", "--rows", rows, "--out", made)
    ended(actlake(*source, "--sites", "embed"))
    ratios = []
    for number in range(repeats):
        rates = {}
        for count in (1, 2) if number % 2 else (2, 1):
            words = ("ingest", "--into", made, "--model", model, "--group", f"of{count}.{number}")
            shards = [("--shard", f"{at}/{count}") for at in range(count)] if count > 1 else [()]
            started = [
                actlake(*words, "--sites", SITES, "--dtype", "float32", *shard, threads=1)
                for shard in shards
            ]
            answers = [ended(one)[0] for one in started]
            slowest = max(answer["seconds"] for answer in answers)
            rates[count] = sum(answer["new_rows"] for answer in answers) / slowest
        ratios.append(rates[2] / rates[1])
        sys.stdout.write(f"one worker {rates[1]:,.0f} rows/s, two {rates[2]:,.0f} rows/s\n")
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    sys.stdout.write(f"two workers are {middle:.2f} times one ({low:.2f}–{high:.2f})\n")
    return {"ratio": middle, "low": low, "high": high}


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure and print what was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default=str(bundled_causal()))
    parser.add_argument("--only", choices=("memory", "workers"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args(words)
    sizes, rows = ((40, 80), 9000) if arguments.small else ((3000, 30_000), 250_000)
    repeats = 1 if arguments.small else arguments.repeats
    here = arguments.folder / "scale"
    shutil.rmtree(here, ignore_errors=True)
    found = {}
    try:
        if arguments.only != "workers":
            found["memory"] = memory(here, arguments.model, sizes)
        if arguments.only != "memory":
            found["workers"] = workers(here, arguments.model, rows, repeats)
    finally:
        shutil.rmtree(here, ignore_errors=True)
    return found


if __name__ == "__main__":
    main()
