"""Settings of ``train``, ``eval`` and ``encode``."""

from dataclasses import dataclass

from tyro.conf import Positional

from jobs.config.base import Latents, Names, Numbers, Rows, Words
from jobs.config.placement import Placed


@dataclass(frozen=True, kw_only=True)
class Train(Placed):
    """Train dictionaries on stored sites, all on one reading of the rows; commas make a grid.

    With --runtime ray every worker is a rank that gets its rows of each batch; a stop there goes back to the last checkpoint.

    Example: actlake train ./store --site blocks.3.resid_post --latents 4k,16k --k 32,64 --out ./runs
    """

    url: Positional[str]
    """The store."""
    site: Names
    """Columns to read: site or group:site, sets blocks.{3,5}.resid_post, patterns blocks.*.mlp.in. Crosscoders and
    cross-layer transcoders take all of them at once, others each."""
    target: Names | None = None
    """Columns a transcoder rebuilds, one for each --site; default: the mlp.out of its mlp.in."""
    gradient: str | None = None
    """Column of gradients a g-SAE selects by; default: the site's in group grad.exact.nll."""
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
    order_seed: int | None = None
    """Seed of the order of rows, the same for all; default: the first of the seeds."""
    set: tuple[str, ...] = ()
    """Further settings of the variant, NAME=VALUE: --set aux_weight=0.1 activation=relu."""
    rows: Rows | None = None
    """Rows to train on, over all epochs; default: four epochs."""
    batch_rows: Rows = 2048
    """Rows of a batch."""
    lr: float | None = None
    """Peak learning rate; default: by rule."""
    precision: str = "auto"
    """Of selection: float32, bfloat16, or auto: bfloat16 where the machine multiplies it."""
    optimizer: str = "adam"
    """adam, or adam_8bit: moments in one byte a value."""
    average: float | None = None
    """Decay of a running mean of the weights that is exported in their place, as .999."""
    resample_every: int | None = None
    """Steps after which dead latents start afresh; default: never."""
    keep_best: bool = False
    """Score every checkpoint on split val and keep the best dictionary in the result's folder best."""
    track: Words | None = None
    """Where figures go besides the result's own log, by name: tensorboard, wandb, trackio."""
    device: str = "cpu"
    """cpu, cuda, cuda:1."""
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
    site: Names | None = None
    """Columns; default: those it was trained on."""
    target: Names | None = None
    """Columns a transcoder rebuilds; default: those it was trained on."""
    split: str = "test"
    """Split to evaluate on; all takes every document."""
    suite: Words = ("core",)
    """core; behaviour: the model's loss with the dictionary in it; probing: classes told by few latents; truth: planted
    features found and fired with; stability: latents matched with those of --against."""
    model: str | None = None
    """behaviour: folder or hub id of the model; default: as the store names it."""
    sequences: int | None = None
    """behaviour: sequences the model runs on; default 256."""
    device: str | None = None
    """behaviour: where the model runs; default cpu."""
    label: str | None = None
    """probing: what is told apart: truth, or a column of the tokens (token_id, doc_id); default: truth where it is
    known, else token_id."""
    against: tuple[str, ...] = ()
    """Folders of other dictionaries of the same columns, as other seeds give."""
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
