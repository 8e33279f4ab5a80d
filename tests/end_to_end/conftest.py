"""A small model, a small corpus and one small demo, shared by the end-to-end tests."""

from pathlib import Path

import numpy as np
import pytest

WORDS = [
    "river",
    "stone",
    "lamp",
    "under",
    "seven",
    "quiet",
    "the",
    "a",
    "of",
    "and",
    "house",
    "green",
    "walks",
    "sings",
    "over",
    "table",
]
SITE = "blocks.1.resid_post"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(7)
    for number in range(40):
        text = " ".join(rng.choice(WORDS, int(rng.integers(40, 160))))
        (folder / f"d{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    from ingest.models import toy

    folder = tmp_path_factory.mktemp("model")
    toy.save("gpt2", folder, text=" ".join(WORDS))
    return folder


@pytest.fixture
def front_door(capsys):
    """Run ``actlake`` in this process; return (exit code, stdout, stderr)."""
    from jobs import cli

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:  # the command-line parser's own usage errors
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def template(tmp_path_factory, corpus, model) -> Path:
    """A complete small store that tests copy and then damage."""
    from jobs import cli

    url = tmp_path_factory.mktemp("template") / "store"
    words = ["ingest", "--model", model, "--corpus", corpus, "--out", url, "--sites", SITE]
    words += ["--context", "32", "--part-rows", "512", "--dtype", "bfloat16", "--json"]
    assert cli.main([str(word) for word in words]) == 0
    return url
