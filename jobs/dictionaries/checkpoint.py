"""Checkpoints of a training run: safetensors and JSON, whole or absent, the last and the one before.

A checkpoint is a folder that gets its name by one rename after its files are on disk, so a crash leaves the
old ones. Its JSON holds the sha256 of the tensors: a damaged checkpoint is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from jobs.codebook import sync_folder, write_atomic
from store.errors import ConflictError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "actlake-checkpoint/2"
TENSORS_FILE = "state.safetensors"
STATE_FILE = "state.json"
KEPT = 2


class Checkpoints:
    """The checkpoints of one recipe in ``out/checkpoints``, or another folder there; without a folder nothing is ever kept."""

    def __init__(
        self, out: Path | None, recipe: Mapping[str, Any], name: str = "checkpoints"
    ) -> None:
        self.out = out
        self.recipe = json.loads(json.dumps(recipe))
        self._folder = None if out is None else out / name

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep a checkpoint of ``step``; returns once it is durable."""
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        data = save_tensors({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
        card = {
            "format": FORMAT,
            "recipe": self.recipe,
            "state": dict(state),
            "tensors_sha256": hashlib.sha256(data).hexdigest(),
        }
        temporary = self._folder / f".writing-{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write_atomic(temporary / TENSORS_FILE, data)
        write_atomic(temporary / STATE_FILE, json.dumps(card, sort_keys=True).encode())
        final = self._folder / f"step-{step:09d}"
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        sync_folder(self._folder)
        for old in self._names()[:-KEPT]:
            shutil.rmtree(self._folder / old)

    def clear(self) -> None:
        """Remove every checkpoint, whatever its recipe."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _names(self) -> list[str]:
        if self._folder is None or not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.glob("step-*"))

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return (tensors, state) of the newest intact checkpoint, or None.

        Raises
        ------
        ConflictError
            ``other-recipe``: the folder holds the run of another config or other rows.
        """
        for name in reversed(self._names()):
            if (found := self._read(name)) is not None:
                return found
        return None

    def _read(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        assert self._folder is not None
        try:
            data = (self._folder / name / TENSORS_FILE).read_bytes()
            card = json.loads((self._folder / name / STATE_FILE).read_bytes())
            intact = card["tensors_sha256"] == hashlib.sha256(data).hexdigest()
        except (OSError, ValueError, KeyError):
            return None
        if card.get("recipe") != self.recipe or card.get("format") != FORMAT:
            self._refuse(name, card.get("recipe") or {})
        return (load_tensors(data), card["state"]) if intact else None

    def _refuse(self, name: str, other: Mapping[str, Any]) -> None:
        keys = sorted({*self.recipe, *other})
        differ = [key for key in keys if self.recipe.get(key) != other.get(key)]
        found = "; ".join(
            f"{key}: asked {_short(self.recipe.get(key))}, found {_short(other.get(key))}"
            for key in differ
        )
        raise ConflictError(
            f"training was to resume in {self.out}, but checkpoint {name} there is of another recipe"
            f" ({found or 'another format'}). Nothing was changed. Choose another folder, the same"
            " recipe, or remove the checkpoints.",
            kind="other-recipe",
        )

    def report_rows(self, step: int, row_ids: list[int], why: str) -> Path | None:
        """Write ``diverged.json`` with the rows that broke a step; returns where."""
        if self.out is None:
            return None
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / "diverged.json"
        body = {"step": step, "row_ids": row_ids, "why": why}
        write_atomic(path, json.dumps(body, indent=1).encode())
        return path


def _short(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 160 else text[:157] + "..."
