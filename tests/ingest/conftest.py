"""Images and models that see them, for every test of both."""

from __future__ import annotations

import json

import pytest

from ingest.models import toy

SEEING = ("vit", "dinov2", "clip_vision_model", "clip", "llava")


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Return a folder of 23 images of several sizes, and lines that give each a text."""
    where = tmp_path_factory.mktemp("images")
    for number in range(23):
        (where / f"{number:02}.png").write_bytes(toy.image(number, (30 + number, 50)))
    lines = [
        {"image": f"{number:02}.png", "text": f"the mill, seen {number} times"}
        for number in range(23)
    ]
    (where / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return where


@pytest.fixture(scope="session")
def seeing(tmp_path_factory):
    """Return a folder by family: of all that see, and of one that reads alone."""
    root = tmp_path_factory.mktemp("models")
    return {name: toy.save(name, root / name) for name in (*SEEING, "llama")}
