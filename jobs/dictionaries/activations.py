"""The ways to be sparse that transcoders and crosscoders can be given by name."""

from __future__ import annotations

from typing import NamedTuple

from jobs.dictionaries.contract import Loss, Sparsifier, require
from jobs.dictionaries.losses.l1 import l1
from jobs.dictionaries.penalty import Penalty
from jobs.dictionaries.sparsifiers.batch_topk import BatchTopK
from jobs.dictionaries.sparsifiers.relu import Relu
from jobs.dictionaries.sparsifiers.row_topk import RowTopK

ACTIVATIONS = ("batch_topk", "topk", "relu")


class Activation(NamedTuple):
    """A sparsifier, and the penalty it needs to be sparse."""

    sparsifier: Sparsifier
    penalty: Penalty | None


def activation(name: str, k: int, l1_weight: float) -> Activation:
    """Return a way to be sparse: ``batch_topk``, ``topk``, or ``relu`` with an L1 penalty that is steered to k.

    Raises
    ------
    InvalidInputError
        ``invalid-config``.
    """
    check_activation(name)
    if name == "relu":
        loss: Loss = l1
        return Activation(Relu(), Penalty(l1_weight, loss, k))
    return Activation(BatchTopK(k) if name == "batch_topk" else RowTopK(k), None)


def check_activation(name: str) -> None:
    """Refuse a name that is none of ``ACTIVATIONS``."""
    require("activation", name, f"one of {', '.join(ACTIVATIONS)}", holds=name in ACTIVATIONS)
