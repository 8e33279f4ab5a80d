"""A dictionary beside the features its rows were made of.

Dimensions: L latents, N true features, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from jobs.blocks import blocks
from jobs.codebook import Codebook
from jobs.dictionaries.matching import matched, similarity
from jobs.dictionaries.suite import SUITES, Asked, Figures
from jobs.errors import JobError
from jobs.run import map_merge
from store import Store, tables
from store import open as open_store
from store.conditions import Condition

Array = np.ndarray[Any, np.dtype[Any]]
RECOVERED = 0.9
TRUTH = "truth"
"""The group in which a source of planted rows leaves their codes."""


def true_features(store: Store, column: str) -> Array | None:
    """Return the planted features of a column, float32 [N, D], or None where it was not planted."""
    group, _ = store.view.resolve(column)
    if group.recipe.get("truth") is None:
        return None
    from safetensors.numpy import load

    files = store.asset(str(group.recipe["truth"]))
    held = load(files["truth.safetensors"]) if "truth.safetensors" in files else {}
    features: Array | None = held.get("features")
    return features


def directions(features_ND: Array, book: Codebook) -> dict[str, float]:
    """Return how the decoder's rows lie to the true features.

    ``mcc``: mean |cos| over the one-to-one matching; ``uniqueness``: distinct nearest features over latents;
    ``mean_max_cosine``: mean over features of the largest cosine with a latent (recall), ``latent_max_cosine`` the
    other way round (precision); ``recovered``: share of features with a cosine above .9.

    Notes
    -----
    Source: SynthSAEBench (2602.14687), section 5.
    """
    rows_LD = book.W_dec_LD.numpy()
    cosine_LN = similarity(rows_LD, features_ND)
    rows, columns = matched(cosine_LN)
    signed = rows_LD @ features_ND.T
    return {
        "mcc": float(cosine_LN[rows, columns].mean()),
        "uniqueness": len(np.unique(cosine_LN.argmax(axis=1))) / len(cosine_LN),
        "mean_max_cosine": float(signed.max(axis=0).mean()),
        "latent_max_cosine": float(signed.max(axis=1).mean()),
        "recovered": float((signed.max(axis=0) > RECOVERED).mean()),
    }


@dataclass(frozen=True)
class Firing:
    """How often latents and their nearest features fire, apart and together; mergeable, whole numbers."""

    together: Array
    """Rows in which a latent and its nearest feature fire, int64 [L]."""
    fired: Array
    """Rows in which a latent fires, int64 [L]."""
    true: Array
    """Rows in which a feature fires, int64 [N]."""

    def merge(self, other: Firing) -> Firing:
        """Return the counts of both shares."""
        return Firing(
            self.together + other.together,
            self.fired + other.fired,
            self.true + other.true,
        )

    def finalize(self, nearest_L: Array) -> dict[str, float]:
        """Return precision, recall and F1 of "the latent fires" for "its nearest feature does", means over latents.

        A quotient of nothing by nothing is 0.
        """
        precision = _share(self.together, self.fired)
        recall = _share(self.together, self.true[nearest_L])
        f1 = _share(2 * precision * recall, precision + recall)
        names = ("precision", "recall", "f1")
        return {n: float(v.mean()) for n, v in zip(names, (precision, recall, f1), strict=True)}


def _share(part: Array, whole: Array) -> Array:
    part, whole = part.astype(np.float64), whole.astype(np.float64)
    found: Array = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return found


class FiringWorker:
    """Counts the firing of one part's rows."""

    def __init__(
        self,
        url: str,
        column: str,
        where: Sequence[Condition],
        book: Codebook,
        nearest_L: Array,
        features: int,
    ) -> None:
        self._store = open_store(url)
        self._column, self._where, self._book = column, where, book
        self._nearest_L, self._features = nearest_L, features

    def run(self, part: int) -> Firing | None:
        """Return the part's counts, or None where none of its rows counts."""
        view, found = self._store.view, None
        held = view.table(view.commit(TRUTH, part), "codes.parquet")
        row, feature = (
            np.asarray(tables.column(held, name), np.int64) for name in ("row", "latent")
        )
        keys = np.sort(row * self._features + feature)
        for block in blocks(self._store, self._column, where=self._where, parts=[part]):
            codes = self._book.encode(block.x)
            ids, latent = block.row_ids[codes.row_index], codes.latent.astype(np.int64)
            asked = ids * self._features + self._nearest_L[latent]
            at = np.minimum(np.searchsorted(keys, asked), max(len(keys) - 1, 0))
            hit = keys[at] == asked if len(keys) else np.zeros(len(asked), bool)
            mine = feature[np.isin(row, block.row_ids)]
            share = Firing(
                np.bincount(latent[hit], minlength=self._book.latents),
                np.bincount(latent, minlength=self._book.latents),
                np.bincount(mine, minlength=self._features),
            )
            found = share if found is None else found.merge(share)
        return found

    def close(self) -> None:
        """Hold nothing open."""


@SUITES.register("truth")
@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """Planted features found (``directions``) and fired with: ``precision``, ``recall``, ``f1``."""

    kind: ClassVar[str]

    def described(self) -> dict[str, Any]:
        """Return nothing: there are no settings."""
        return {}

    def prepare(self, asked: Asked) -> Figures:
        """Return what computes the figures; raises as ``known_features``."""
        features = known_features(asked.store, asked.columns, asked.book)
        return partial(_figures, asked, features)


def _figures(asked: Asked, features_ND: Array) -> dict[str, float]:
    store, column, book = asked.store, asked.columns[0], asked.book
    nearest_L = similarity(book.W_dec_LD.numpy(), features_ND).argmax(axis=1)
    make = partial(FiringWorker, store.url, column, asked.where, book, nearest_L, len(features_ND))
    group, _ = store.view.resolve(column)
    parts = sorted(set(store.view.parts(TRUTH)) & set(store.view.parts(group.name)))
    counted = map_merge(asked.runtime, make, parts)
    firing = {} if counted is None else counted.finalize(nearest_L)
    return {**directions(features_ND, book), **firing}


def known_features(store: Store, columns: Sequence[str], book: Codebook) -> Array:
    """Return the planted features of a dictionary's column, float32 [N, D].

    Raises
    ------
    JobError
        ``no-truth``: the column was not planted, or its source left no features and codes.
    """
    features = true_features(store, columns[0]) if len(columns) == 1 else None
    if features is None or TRUTH not in store.groups or book.width != book.out_width:
        raise JobError(
            f"suite truth was asked for on {', '.join(columns)} of {store.url}, whose features are not known. Nothing was "
            "written. Take a column of a source of planted rows (synthetic, synth_bench), or another suite.",
            kind="no-truth",
        )
    return features
