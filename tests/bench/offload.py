"""What offloading a training step's activations costs and saves, beside the plain step and beside recomputing them.

    python tests/bench/offload.py --folder /tmp/o                     # 8 blocks of width 512, batch 8 of 512 tokens, three ways
    python tests/bench/offload.py --folder /tmp/o --small             # seconds; checks gradients, figures mean nothing

Each way runs in a process of its own, with ``MALLOC_MMAP_THRESHOLD_=65536``: a warm-up, then ``--steps`` steps of forward and
backward on one batch. Told are the median step, the peak of the resident memory above what it was before the first step, and, of
offloading, bytes written, forwarded and deduplicated in a step, and the seconds in which it stood still for storage. Gradients of
all three must be equal (recomputed ones to rounding).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest.offload import Offload

WAYS = ("plain", "recompute", "offload")


def status(name: str) -> float:
    """Return a line of this process's memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def network(arguments: argparse.Namespace) -> Any:
    """Return a Llama in training mode, without dropout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=arguments.width,
        intermediate_size=3 * arguments.width,
        num_hidden_layers=arguments.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=arguments.length,
    )
    return LlamaForCausalLM(config).train()


def measured(way: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the steps one way; in a process of its own."""
    model = network(arguments)
    if way == "recompute":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 2048, (arguments.batch, arguments.length), generator=generator)
    offload = Offload(
        arguments.folder,
        least_bytes=arguments.least_kb << 10,
        pending_bytes=arguments.pending_mb << 20,
    )
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    took = []
    for _ in range(arguments.steps + 1):
        model.zero_grad(set_to_none=False)
        began = time.perf_counter()
        with offload.saving(model) if way == "offload" else nullcontext() as report:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        took.append(time.perf_counter() - began)
    gradient = torch.cat([p.grad.flatten()[:1000].double() for p in model.parameters()])
    found: dict[str, Any] = {
        "seconds": float(np.median(took[1:])),
        "peak_mb": status("VmHWM") - before,
        "gradient": [float(gradient.sum()), float(gradient.norm())],
    }
    if report is not None:
        found["report"] = {name: getattr(report, name) for name in report.__slots__}
        found["report"]["exposed_seconds"] = report.exposed_seconds
    return found


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table and write ``--out``."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to be measured")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--least-kb", type=int, default=1024)
    parser.add_argument("--pending-mb", type=int, default=128)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args(words)
    if arguments.small:
        arguments.width, arguments.layers, arguments.batch, arguments.length = 64, 2, 2, 64
        arguments.steps, arguments.least_kb, arguments.pending_mb = 1, 4, 1
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.way:
        sys.stdout.write(json.dumps(measured(arguments.way, arguments)) + "\n")
        return {}
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, *words, "--way", way]
        # glibc keeps what is freed in between for later; asked for page by page, it goes back at once.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        found[way] = json.loads(done.stdout.splitlines()[-1])
    for way in WAYS[1:]:
        np.testing.assert_allclose(found[way]["gradient"], found["plain"]["gradient"], rtol=1e-4)
    plain = found["plain"]
    for way in WAYS:
        one = found[way]
        slower, larger = (one[name] / plain[name] for name in ("seconds", "peak_mb"))
        sys.stdout.write(
            f"{way:<10} {one['seconds']:7.2f} s a step ({slower:.2f} of plain)  peak {one['peak_mb']:7.0f} MB ({larger:.2f})\n"
        )
    report = found["offload"]["report"]
    sys.stdout.write(
        f"offloaded: {report['saved_bytes'] / 1e6:,.0f} MB saved a step, {report['deduplicated_bytes'] / 1e6:,.0f} held already, "
        f"{report['kept_bytes'] / 1e6:,.0f} of parameters, {report['written_bytes'] / 1e6:,.0f} written, "
        f"{report['read_bytes'] / 1e6:,.0f} read, {report['forwarded_bytes'] / 1e6:,.0f} forwarded; stood still "
        f"{report['exposed_seconds']:.2f} s ({report['waited_to_save_seconds']:.2f} to save, "
        f"{report['waited_to_load_seconds']:.2f} to load)\n"
    )
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))
    return found


if __name__ == "__main__":
    main()
