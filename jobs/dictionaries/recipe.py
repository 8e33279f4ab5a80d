"""What one dictionary is made of, and whether several fit the memory there is before any is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.dictionaries.config import TrainConfig
from jobs.errors import RefusedError
from store import Store
from store.windows import free_memory_bytes


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one dictionary is made of."""

    columns: tuple[str, ...]
    """Columns it reads, side by side."""
    config: TrainConfig
    targets: tuple[str, ...] = ()
    """Columns it rebuilds; none: those it reads."""
    gradient: str | None = None
    """Column of gradients by what it reads."""

    def named(self) -> dict[str, Any]:
        """Return the columns as a dictionary names them: ``site``, and a transcoder's ``targets``."""
        targets = {"targets": list(self.targets)} if self.targets else {}
        return {
            "site": self.columns[0] if len(self.columns) == 1 else list(self.columns),
            **targets,
        }

    def described(self) -> dict[str, Any]:
        """Return the recipe as JSON values."""
        more = {} if self.gradient is None else {"gradient": [self.gradient]}
        return {**self.named(), **more, "train": self.config.to_json()}


def check_memory(store: Store, recipes: Sequence[Recipe]) -> None:
    """Raise ``over-budget`` where the dictionaries cannot fit the memory that is free.

    Counts weight matrices with gradients and two moments each, float32, and one batch.
    """
    need = 0
    for recipe in recipes:
        config = recipe.config
        latents = config.build_variant().latents
        width = sum(_width(store, name) for name in recipe.columns)
        out_width = sum(_width(store, name) for name in recipe.targets) or width
        moments = 2 * 4 if config.optimizer == "adam" else 2
        need += (8 + moments) * latents * (width + out_width)
        need += 4 * (width + out_width) * config.batch_rows
    free = free_memory_bytes()
    if need > free:
        sizes = sorted({recipe.config.build_variant().latents for recipe in recipes})
        many = f"{len(recipes)} dictionaries" if len(recipes) > 1 else "a dictionary"
        raise RefusedError(
            f"{many} of {', '.join(f'{size:,}' for size in sizes)} latents on "
            f"{', '.join(recipes[0].columns)} ({_width(store, recipes[0].columns[0])} values a row) needs at least "
            f"{need / 1e9:,.1f} GB to train; {free / 1e9:,.1f} GB are free. Nothing was written. Use fewer --latents, "
            "fewer dictionaries at once, or another machine.",
            kind="over-budget",
        )


def _width(store: Store, name: str) -> int:
    return int(np.prod(store.column(name).shape))
