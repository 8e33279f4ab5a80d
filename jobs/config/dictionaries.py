"""Settings of ``train``, ``eval`` and ``encode``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Latents, Numbers, Rows, Verb, Words
from jobs.config.placement import Placed


@dataclass(frozen=True, kw_only=True)
class Train(Verb):
    """Train dictionaries on a stored site; commas make a grid.

    Example: actlake train ./store --site blocks.3.resid_post --latents 4k,16k --k 32,64 --out ./runs
    """

    url: Positional[str]
    """The store."""
    site: str
    """Column to train on: site, or group:site."""
    out: str = "."
    """Folder that gets results/."""
    variant: Words = ("batch_topk",)
    """Kinds of dictionary."""
    latents: Latents = (4096,)
    """Numbers of latents; 4k is 4096."""
    k: Numbers = (32,)
    """Mean active latents of a row."""
    seeds: Numbers = (0,)
    """Seeds."""
    rows: Rows | None = None
    """Rows to train on, over all epochs; default: four epochs."""
    batch_rows: Rows = 2048
    """Rows of a batch."""
    lr: float | None = None
    """Peak learning rate; default: by rule."""
    split: str = "train"
    """Split to train on."""
    window_rows: Rows | None = None
    """Rows shuffled at once; default: all that fit a quarter of the free memory."""


@dataclass(frozen=True, kw_only=True)
class Eval(Placed):
    """Evaluate a dictionary on held-out rows.

    Example: actlake eval runs/results/train-1a2b3c4d --on ./store
    """

    dictionary: Positional[str]
    """Folder of a trained dictionary."""
    on: str
    """The store."""
    site: str | None = None
    """Column; default: the one it was trained on."""
    split: str = "test"
    """Split to evaluate on; all takes every document."""
    out: str | None = None
    """Folder that gets results/; default: where the dictionary's result is."""


@dataclass(frozen=True, kw_only=True)
class Encode(Placed):
    """Write a dictionary's codes of every row as a group of the store.

    Example: actlake encode runs/results/train-1a2b3c4d --on ./store --group codes
    """

    dictionary: Positional[str]
    """Folder of a trained dictionary."""
    on: str
    """The store."""
    group: str = "codes"
    """Name of the group."""
    site: str | None = None
    """Column; default: the one it was trained on."""
