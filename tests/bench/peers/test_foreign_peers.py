"""The libraries themselves read what is exported to them, and what they write is read here: 1e-5."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import venv
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs.cli import main
from jobs.codebook import Codebook
from jobs.dictionaries.array_feed import ArrayFeed
from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.train import train

pytestmark = [pytest.mark.peers, pytest.mark.timeout(3600)]

REQUIREMENTS = ("sae-lens==6.54.*", "dictionary_learning==0.1.*", "torch==2.13.0")
ALONE = ("eai-sparsify==1.3.*",)
"""Installed without what it asks for, which includes other builds of torch."""
BESIDE = ("natsort", "simple-parsing", "schedulefree")
WORKER = Path(__file__).with_name("foreign_worker.py")
WIDTH, LATENTS, K = 24, 96, 5


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "peers_env"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "install", *REQUIREMENTS, *BESIDE], check=True)
        subprocess.run([*pip, "install", "--no-deps", *ALONE], check=True)
        subprocess.run([*pip, "uninstall", "--yes", "torchvision"], check=True)
        (folder / "ready").touch()
    return python


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(4000, 60, generator=generator) * (
        torch.rand(4000, 60, generator=generator) < 0.08
    )
    return 3 * codes @ torch.randn(60, WIDTH, generator=generator) + 0.5


def ask(python, tmp_path, rows, tasks):
    np.save(tmp_path / "rows.npy", rows.numpy())
    asked = {"rows": str(tmp_path / "rows.npy"), "tasks": tasks}
    subprocess.run([str(python), "-W", "ignore", str(WORKER), json.dumps(asked)], check=True)
    return [torch.from_numpy(np.load(task["answer"])) for task in tasks]


def trained(rows, kind, **fields):
    y = rows.flip(1).contiguous() if "transcoder" in kind else None
    config = TrainConfig(
        variant={"kind": kind, "latents": LATENTS, "k": K, **fields},
        steps=150,
        batch_rows=256,
        precision="float32",
    )
    return train(ArrayFeed(rows, 256, y=y), config).codebook


EXPORTED = {
    "saelens": ("batch_topk", "topk", "jumprelu", "gated", "relu", "matryoshka", "skip_transcoder", "transcoder"),
    "dictionary_learning": ("batch_topk", "topk", "jumprelu", "gated", "relu", "matryoshka"),
    "sparsify": ("topk", "skip_transcoder", "transcoder"),
}  # fmt: skip


def test_trained_here_and_loaded_there(python, rows, tmp_path, capsys):
    tasks, expected, names = [], [], []
    for library, kinds in EXPORTED.items():
        for kind in kinds:
            book = trained(rows, kind, **({"activation": "topk"} if "transcoder" in kind else {}))
            if "transcoder" in kind:
                book = dataclasses.replace(book, meta={**book.meta, "targets": ["y"]})
            book.save(tmp_path / "ours" / library / kind)
            folder = tmp_path / "theirs" / library / kind
            words = [
                "export",
                library,
                str(tmp_path / "ours" / library / kind),
                "--out",
                str(folder),
            ]
            assert main(words) == 0
            if library == "sparsify":
                book = dataclasses.replace(book, threshold=0.0, row_k=K)
            expected.append(book.reconstruct(rows[:500]))
            answer = str(tmp_path / f"{library}-{kind}.npy")
            tasks.append(
                {"do": "load", "library": library, "folder": str(folder), "answer": answer}
            )
            names.append((library, kind))
    found = ask(python, tmp_path, rows[:500], tasks)
    for name, ours, theirs in zip(names, expected, found, strict=True):
        scale = float(ours.abs().max())
        assert torch.allclose(ours, theirs, atol=1e-5 * scale), name


MADE = [
    ("saelens", "standard", {}),
    ("saelens", "gated", {}),
    ("saelens", "jumprelu", {}),
    ("saelens", "topk", {"config": {"k": K}, "unit": True}),
    ("saelens", "topk", {"config": {"k": K, "rescale_acts_by_decoder_norm": True}}),
    ("saelens", "transcoder", {"config": {"d_out": 17, "apply_b_dec_to_input": False}}),
    ("saelens", "skip_transcoder", {"config": {"d_out": 17, "apply_b_dec_to_input": False}}),
    ("saelens", "jumprelu_transcoder", {"config": {"d_out": 17, "apply_b_dec_to_input": False}}),
    (
        "saelens",
        "jumprelu_skip_transcoder",
        {"config": {"d_out": 17, "apply_b_dec_to_input": False}},
    ),
    *(
        ("dictionary_learning", name, {})
        for name in (
            "AutoEncoder",
            "AutoEncoderNew",
            "AutoEncoderTopK",
            "BatchTopKSAE",
            "MatryoshkaBatchTopKSAE",
            "JumpReluAutoEncoder",
            "GatedAutoEncoder",
        )
    ),
    ("sparsify", "topk", {}),
    ("sparsify", "transcoder", {"config": {"transcode": True}}),
    ("sparsify", "skip", {"config": {"transcode": True, "skip_connection": True}}),
]


def test_made_there_and_read_here(python, rows, tmp_path):
    tasks = [
        {
            "do": "make",
            "library": library,
            "architecture": architecture,
            "width": WIDTH,
            "latents": LATENTS,
            "k": K,
            "folder": str(tmp_path / f"made-{at}"),
            "answer": str(tmp_path / f"made-{at}.npy"),
            **more,
        }
        for at, (library, architecture, more) in enumerate(MADE)
    ]
    found = ask(python, tmp_path, rows[:500], tasks)
    for task, theirs in zip(tasks, found, strict=True):
        out = tmp_path / "read" / Path(task["folder"]).name
        words = ["import", task["library"], task["folder"], "--out", str(out), "--site", "x"]
        assert main(words) == 0
        book = Codebook.load(out)
        assert book.meta["site"] == "x"
        ours = book.reconstruct(rows[:500])
        what = (task["library"], task["architecture"])
        assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max())), what
