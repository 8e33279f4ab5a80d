"""Attention problems from a store: what a layer's attention saw, checked against what it gave.

Nothing runs on tensors that do not reproduce the stored output: a wrong rotation, scale, soft cap,
window or head order would make every figure about some other model.

Dimensions: T tokens of a sequence, H query heads, G key heads, d head width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from ingest.models import AttentionSpec, attention_sites, rotate
from jobs.errors import JobError
from jobs.kernels.contract import QKV
from jobs.kernels.scores import dense
from jobs.sequences import locate, missing_columns_error, shared_parts, stored_sites
from store import Store, tables
from store.tokens import SPLITS

if TYPE_CHECKING:
    from ingest.models import Rotary

DRIFT = 1e-2
"""Largest relative error of a head's recomputed output (specification of kernels, 1.3: bfloat16)."""


class Facts(Protocol):
    """What knows how each block attends: an adapter, or the facts a store keeps of one."""

    @property
    def trained_length(self) -> int | None:
        """Longest sequence the model was trained on; None where not known."""

    def attention(self, layer: int, /) -> AttentionSpec:
        """Return the attention of a block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """Where a layer's attention is stored: addresses ``group:site``."""

    layer: int
    q: str
    k: str
    v: str
    z: str
    turned: bool
    """Whether q and k are stored after rotation, as attention sees them."""
    parts: tuple[int, ...]
    """Parts that have all of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sequence of the store."""

    sequence: int
    """Its id: that of its first row."""
    document: int
    """The document it is of; a negative number of its own where it is of none, or of several."""
    rows: int
    """Tokens taken of it, from its first."""


def columns_of(store: Store, facts: Facts, layer: int, group: str | None = None) -> Columns:
    """Return the columns of a layer's attention: rotated ones where they are kept, else the others.

    Raises
    ------
    JobError
        ``columns-missing``, with the ingest command that adds them; ``ambiguous-column`` where groups that
        were made differently hold them and none is named; ``masked-group``.
    """
    groups = None if group is None else [group]
    wanted = attention_sites(facts, layer)
    plain = (*(re.sub(r"\.rot_([qk])$", r".\1", site) for site in wanted[:2]), *wanted[2:])
    there = set(stored_sites(store, groups))
    sites = next((sites for sites in (wanted, plain) if there >= set(sites)), None)
    if sites is None:
        raise missing_columns_error(store, wanted, groups)
    held = locate(store, sites, groups)
    q, k, v, z = (f"{held.groups[site]}:{site}" for site in sites)
    turned = facts.attention(layer).rotary is None or sites == wanted
    parts = tuple(shared_parts(store, held))
    return Columns(layer=layer, q=q, k=k, v=v, z=z, turned=turned, parts=parts)


def samples_of(
    store: Store,
    parts: Sequence[int],
    count: int,
    split: str | None = None,
    *,
    longest: int | None = None,
) -> list[Sample]:
    """Return sequences of some parts: one of each document while documents last, the longest first.

    Parameters
    ----------
    longest
        Tokens taken of a sequence at most: causal attention to a beginning is that of the whole.

    Raises
    ------
    JobError
        ``no-sequences``, ``unknown-split``.
    """
    table = store.arrow("sequences")
    fields = {n: tables.column(table, n) for n in ("seq_id", "doc_id", "rows", "split")}
    keep = np.isin(fields["seq_id"] // store.part_stride, list(parts))
    if split is not None:
        if split not in SPLITS:
            raise JobError(
                f"there is no split {split!r}; known: {', '.join(SPLITS)}, all. Nothing was started.",
                kind="unknown-split",
            )
        keep &= fields["split"] == SPLITS.index(split)
    found = [
        Sample(
            sequence=int(s),
            document=int(d) if d >= 0 else -1 - int(s),
            rows=min(int(r), longest or int(r)),
        )
        for s, d, r in zip(*(fields[n][keep] for n in ("seq_id", "doc_id", "rows")), strict=True)
    ]
    found.sort(key=lambda sample: (-sample.rows, sample.sequence))
    turn: dict[int, int] = {}
    order = []
    for sample in found:
        turn[sample.document] = turn.get(sample.document, -1) + 1
        order.append((turn[sample.document], sample))
    chosen = [sample for _, sample in sorted(order, key=lambda item: item[0])][:count]
    if not chosen:
        raise JobError(
            f"the attention's columns of {store.url} cover no sequence{f' of split {split}' if split else ''}. Nothing "
            "was started. `actlake inspect` shows coverage.",
            kind="no-sequences",
        )
    return chosen


def qkv_of(store: Store, columns: Columns, spec: AttentionSpec, sample: Sample) -> QKV:
    """Return a sequence's attention problem, float32, one batch row.

    q and k stored before rotation are turned here, in float32, at the stored positions.

    Raises
    ------
    JobError
        ``heads-differ`` or ``bad-shape`` where columns and model disagree.
    """
    ids = [sample.sequence]
    taken = slice(sample.rows)
    q, k, v = (
        _heads_first(store.sequences(c, ids)[0][taken]) for c in (columns.q, columns.k, columns.v)
    )
    held = store.sequences("tokens:pos", ids)[0][taken]
    positions = torch.from_numpy(held.astype(np.int64))[None]
    if not columns.turned and spec.rotary is not None:
        q, k = (turned(x, positions, spec.rotary) for x in (q, k))
    if (q.shape[1], k.shape[1]) != (spec.heads, spec.kv_heads):
        raise JobError(
            f"layer {columns.layer} has {spec.heads} query and {spec.kv_heads} key heads by its model, {q.shape[1]} "
            f"and {k.shape[1]} in columns {columns.q} and {columns.k}. Nothing was computed. Name the model the "
            "columns came from.",
            kind="heads-differ",
        )
    return QKV(
        q=q,
        k=k,
        v=v,
        scale=spec.scale,
        causal=spec.causal,
        window=spec.window,
        softcap=spec.softcap,
        rotary=spec.rotary,
        positions=positions,
        key=sample.sequence,
        meta={"layer": columns.layer, "sequence": sample.sequence, "document": sample.document},
    )


def turned(x_BHTd: Tensor, positions_BT: Tensor, rotary: Rotary, *, back: bool = False) -> Tensor:
    """Return heads-first q or k rotated to their positions, or from them where ``back``."""
    at = -positions_BT if back else positions_BT
    out = rotate(x_BHTd.transpose(1, 2), at, rotary).transpose(1, 2)
    if back and rotary.magnitude != 1.0:
        width = 2 * len(rotary.inverse_frequencies)
        out = torch.cat([out[..., :width] / rotary.magnitude**2, out[..., width:]], -1)
    return out


def check_drift(store: Store, columns: Columns, qkv: QKV) -> float:
    """Return the largest relative error of a head's recomputed attention against the stored one.

    Raises
    ------
    JobError
        ``drift``: it is above 1e-2.
    """
    z = _heads_first(store.sequences(columns.z, [qkv.key])[0][: qkv.q.shape[2]])
    o, _ = dense(qkv)
    error_H = (o - z).norm(dim=(2, 3))[0] / z.norm(dim=(2, 3))[0].clamp(min=1e-30)
    head = int(error_H.nan_to_num(torch.inf).argmax())
    worst = float(error_H[head])
    if worst <= DRIFT:
        return worst
    raise JobError(
        f"attention of layer {columns.layer} recomputed from {columns.q}, {columns.k} and {columns.v} differs from the "
        f"stored {columns.z}: head {head} by {worst:.3g} of its norm in sequence {qkv.key}, {DRIFT} at most is allowed. "
        "Nothing was measured. The usual causes are another model's facts (scale, rotation, window, soft cap) or "
        "columns of different models in one group; harvest q, k, v and z together.",
        kind="drift",
        layer=columns.layer,
        head=head,
    )


def _heads_first(x_THd: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Tensor:
    """Return stored rows as ``[1, H, T, d]``, float32."""
    return torch.from_numpy(np.ascontiguousarray(x_THd.astype(np.float32))).transpose(0, 1)[None]


def joined(problems: Sequence[QKV], rows: int) -> QKV:
    """Return one long problem made of others' rows, end to end and again, ``rows`` long.

    Its values are real ones; what attends to what is not. For times of shapes, never for fidelity.
    """
    held = sum(p.q.shape[2] for p in problems)
    again = list(problems) * -(-rows // held)
    q, k, v = (
        torch.cat([getattr(p, n) for p in again], 2)[:, :, :rows].contiguous() for n in "qkv"
    )
    first = problems[0]
    return QKV(
        q=q,
        k=k,
        v=v,
        scale=first.scale,
        causal=first.causal,
        window=first.window,
        softcap=first.softcap,
        key=first.key,
        meta={"layer": first.meta.get("layer")},
    )
