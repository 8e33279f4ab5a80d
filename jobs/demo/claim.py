"""The demo's folder: one demo a folder, told by its settings."""

from __future__ import annotations

from pathlib import Path

from jobs.config import Demo, Placed, to_yaml
from jobs.errors import JobError
from store import ConflictError

PLACES = tuple(Placed.__annotations__)
"""Settings that change no result: another run may have others."""


def claim(out: Path, config: Demo) -> None:
    """Make the folder, or refuse one that holds a demo of other settings."""
    text = to_yaml(config, without=("out", *PLACES))
    file = out / "demo.yaml"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            file.write_text(text, encoding="utf-8")
        held = file.read_text(encoding="utf-8")
    except OSError as error:
        raise JobError(
            f"{out} cannot be used: {error.strerror}. Nothing was written. Choose another --out.",
            kind="not-permitted",
        ) from error
    if held != text:
        changed = sorted(set(text.splitlines()) - set(held.splitlines()))
        raise ConflictError(
            f"{out} holds a demo of other settings; asked for {'; '.join(changed)}. Nothing was written and "
            "that demo stands. Choose another --out, or the settings in its demo.yaml.",
            kind="other-config",
        )
