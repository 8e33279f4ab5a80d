"""What a model predicts where what a dictionary rebuilds stands in for what it computed.

The model runs on sequences of the store. At every ordinary token of them the site is replaced, by the reconstruction
of what the model computes in that very forward, by zeros, or by the site's mean; special tokens keep their values,
for dictionaries are not trained on them. Zeros are farther from anything the model has seen than the mean, so they
make any dictionary look good, most of all in early layers: both are given, with the losses themselves.

Dimensions: B examples, T positions, R rows (B·T), D width read, E width rebuilt, L latents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ingest.models import load
from ingest.models.metrics import METRICS, Examples
from jobs.codebook import Codebook
from jobs.dictionaries.suite import SUITES, Asked, Figures
from jobs.errors import JobError
from jobs.interventions import Intervention, Runner, site_means
from jobs.interventions.contract import Needs, operation
from jobs.sequences import batch_of, made_by
from store import Store, tables
from store.errors import ActlakeError
from store.schema import Group
from store.tokens import FLAG_SPECIAL, SPLITS

if TYPE_CHECKING:
    from ingest.models import LoadedModel

Array = np.ndarray[Any, np.dtype[Any]]
LOGITS = 1 << 26
"""Logits of a batch at most: 256 MiB in float32, and a few times that while distributions are compared."""
ORDINARY = "ordinary"
"""The span of the tokens that are replaced."""


@SUITES.register("behaviour")
@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """The model with the dictionary in it: which runs, on how much, and where. See ``behaviour_figures``."""

    kind: ClassVar[str]
    model: str | None = None
    """Folder or hub id; None: as the store names the one it was filled by."""
    sequences: int = 256
    """Sequences it runs on, drawn from the split; all where there are fewer."""
    device: str = "cpu"
    """Where it runs: cpu, cuda, cuda:1."""

    def __post_init__(self) -> None:
        if self.sequences < 1:
            raise JobError(
                f"behaviour on {self.sequences} sequences was asked for. Nothing was run. Ask for at least one.",
                kind="bad-number",
            )

    def described(self) -> dict[str, Any]:
        """Return what its figures depend on; the model is that of the columns."""
        return {"sequences": self.sequences}

    def prepare(self, asked: Asked) -> Figures:
        """Return what computes the figures; raises as ``replacement_of`` and ``held_out_examples``, or `Runner`."""
        found = replacement_of(asked.store, asked.columns, asked.targets, asked.book, self)
        group, _ = asked.store.view.resolve(asked.columns[0])
        examples = held_out_examples(
            asked.store, group, asked.split, self.sequences, vocabulary=_vocabulary(found.model)
        )
        metrics = [METRICS.parse({"kind": kind}) for kind in ("nll", "kl_to_clean")]
        return partial(behaviour_figures, found, Runner(found.model, examples, metrics))


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """A model, what is replaced in it, and the rows the dictionary reads there."""

    model: LoadedModel
    book: Codebook
    reads: tuple[str, ...]
    """Sites side by side, in the dictionary's order."""
    rebuilds: tuple[str, ...]

    def shapes(self, sites: Sequence[str]) -> list[tuple[int, ...]]:
        """Return the shape of one token's value at each site."""
        return [self.model.adapter.sites()[site].shape for site in sites]

    def interventions(self) -> list[Intervention]:
        """Return what watches the sites that are read and puts the reconstruction in the place of the others."""
        depth = {site: self.model.adapter.sites()[site].depth for site in self.reads}
        reading = Reading(
            sites=self.reads,
            widths=tuple(map(_size, self.shapes(self.reads))),
            first=min(depth, key=lambda site: depth[site]),
        )
        found = [Intervention(site=one, op=_Watch(site=one, into=reading)) for one in self.reads]
        low = 0
        for site, shape in zip(self.rebuilds, self.shapes(self.rebuilds), strict=True):
            high = low + _size(shape)
            op = _Rebuild(book=self.book, out_of=reading, low=low, high=high)
            found.append(Intervention(site=site, op=op, span=ORDINARY))
            low = high
        return found


@dataclass(kw_only=True)
class Reading:
    """What the model computed in this forward at the sites a dictionary reads."""

    sites: tuple[str, ...]
    widths: tuple[int, ...]
    first: str
    """The site the model computes before the others."""
    seen: dict[str, Tensor] = field(default_factory=dict)

    def rows(self, count: int) -> Tensor:
        """Return the rows read so far side by side, float32 [R, D]; sites further on are zeros.

        No latent that writes where these rows are used reads those (``check_order``).
        """
        pairs = zip(self.sites, self.widths, strict=True)
        zeros = self.seen[self.first].new_zeros
        held = [self.seen[s] if s in self.seen else zeros(count, w) for s, w in pairs]
        return torch.cat(held, dim=1).float()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Watch:
    """Leaves a site as it is and keeps its value."""

    kind: ClassVar[str] = "watch"
    needs: ClassVar[Needs] = None
    site: str
    into: Reading

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        del values
        if self.site == self.into.first:
            self.into.seen.clear()  # a new forward
        self.into.seen[self.site] = x.flatten(0, 1).flatten(1)
        return x


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Rebuild:
    """Puts the columns ``[low, high)`` of what a dictionary rebuilds in a site's place."""

    kind: ClassVar[str] = "rebuild"
    needs: ClassVar[Needs] = None
    book: Codebook
    out_of: Reading
    low: int
    high: int

    def apply(self, x: Tensor, values: Tensor | None) -> Tensor:
        del values
        rows_RD = self.out_of.rows(x.shape[0] * x.shape[1])
        hat_RE = self.book.reconstruct(rows_RD)[:, self.low : self.high]
        return hat_RE.reshape(x.shape).to(x)


def replacement_of(
    store: Store,
    columns: Sequence[str],
    targets: Sequence[str],
    book: Codebook,
    asked: Behaviour,
) -> Replacement:
    """Return a dictionary in the model its columns came from.

    Raises
    ------
    JobError
        ``no-model``: the columns were not filled by one; ``model-differs``: the one named is another;
        ``not-in-order``: the dictionary rebuilds a site out of sites further on, as a crosscoder does.
    ModelError
        ``model-not-found`` and what else `ingest.models.load` raises.
    """
    resolved = [store.view.resolve(name) for name in (*columns, *(targets or columns))]
    group = resolved[0][0]
    if any(held.recipe.get("model") != group.recipe.get("model") for held, _ in resolved):
        raise _refused("columns of several models were named", "Name columns of one", "no-model")
    sites = [column.name for _, column in resolved]
    found = Replacement(
        model=_model(store, group, asked),
        book=book.to(asked.device),
        reads=tuple(sites[: len(columns)]),
        rebuilds=tuple(sites[len(columns) :]),
    )
    check_order(found)
    return found


def _model(store: Store, group: Group, asked: Behaviour) -> LoadedModel:
    wanted = group.recipe.get("model")
    if wanted is None:
        raise _refused(
            f"no model filled group {group.name!r} of {store.url}",
            "Take columns of a model, or another suite",
            "no-model",
        )
    name = asked.model or made_by(store, group)
    dtype = str(group.recipe["compute_dtype"])
    try:
        model = load(name, dtype=dtype, device=asked.device, revision=wanted.get("commit"))
    except ActlakeError as error:
        if error.kind != "model-not-found" or asked.model:
            raise
        told = f"the model of group {group.name!r} of {store.url} is not where it was: {name}"
        raise _refused(told, "Say where it is: --model FOLDER", error.kind) from error
    if model.identity != wanted:
        raise _refused(
            f"{name} is not the model group {group.name!r} of {store.url} was filled by: the hashes of its files differ",
            "Name that model's folder: --model FOLDER",
            "model-differs",
        )
    return model


def check_order(found: Replacement) -> None:
    """Raise where a latent writes to a site and reads one that the model computes after it."""
    depth = {name: info.depth for name, info in found.model.adapter.sites().items()}
    low = 0
    for target, shape in zip(found.rebuilds, found.shapes(found.rebuilds), strict=True):
        high = low + _size(shape)
        writes_L = (found.book.W_dec_LD[:, low:high] != 0).any(dim=1)
        start = 0
        for source, read in zip(found.reads, found.shapes(found.reads), strict=True):
            stop = start + _size(read)
            later = source != target and depth[source] >= depth[target]
            if later and bool((found.book.W_enc_DL[start:stop, writes_L] != 0).any()):
                raise _refused(
                    f"the dictionary rebuilds {target} out of {source}, which the model computes after it",
                    "Suite behaviour takes dictionaries that read what lies before what they rebuild",
                    "not-in-order",
                )
            start = stop
        low = high


def held_out_examples(
    store: Store, group: Group, split: str | None, sequences: int, *, vocabulary: int = 1
) -> list[Examples]:
    """Return sequences of a split, sorted by length, with the span ``ordinary``.

    Batches are of the harvest's size, or smaller where more than ``LOGITS`` logits would come of them. Parts are drawn in
    an order that is the same every time, so that a store's end is seen as well as its beginning.

    Raises
    ------
    JobError
        ``no-rows``: the split has no sequence with an ordinary token and one that anything predicts.
    """
    drawn: list[dict[str, Array]] = []
    parts = sorted(store.view.parts(group.name))
    for part in np.random.default_rng(0).permutation(parts).tolist():
        wanted = sequences - len(drawn)
        drawn += list(_sequences(store, part, split))[:wanted]
        if len(drawn) >= sequences:
            break
    if not drawn:
        raise _refused(
            f"split {split or 'all'} of {store.url} has no sequence of two tokens",
            "Name another split: --split train",
            "no-rows",
        )
    drawn.sort(key=lambda one: len(one["token_id"]))
    longest = len(drawn[-1]["token_id"])
    size = max(1, min(batch_of(group.recipe), LOGITS // (longest * vocabulary)))
    return [_batch(drawn[low : low + size]) for low in range(0, len(drawn), size)]


def _vocabulary(model: LoadedModel) -> int:
    """Return how many logits a token has; 1 where the model gives none, which `Runner` refuses."""
    head = getattr(model.model, "get_output_embeddings", lambda: None)()
    return 1 if head is None else int(head.weight.shape[0])


def _sequences(store: Store, part: int, split: str | None) -> Iterator[dict[str, Array]]:
    held = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
    names = ("token_id", "seq_id", "flags", "split")
    values = {name: np.asarray(tables.column(held, name)) for name in names}
    starts = np.flatnonzero(np.diff(values["seq_id"], prepend=-1))
    for low, high in zip(starts, [*starts[1:], len(values["seq_id"])], strict=True):
        one = {name: value[low:high] for name, value in values.items()}
        fits = split is None or SPLITS[int(one["split"][0])] == split
        ordinary = (one["flags"] & FLAG_SPECIAL) == 0
        if fits and len(ordinary) > 1 and ordinary.any():
            yield one


def _batch(drawn: Sequence[Mapping[str, Array]]) -> Examples:
    length = max(len(one["token_id"]) for one in drawn)
    ids, mask = (torch.zeros(len(drawn), length, dtype=torch.int64) for _ in range(2))
    ordinary = torch.zeros(len(drawn), length, dtype=torch.bool)
    for at, one in enumerate(drawn):
        count = len(one["token_id"])
        ids[at, :count] = torch.from_numpy(one["token_id"].astype(np.int64))
        mask[at, :count] = 1
        ordinary[at, :count] = torch.from_numpy((one["flags"] & FLAG_SPECIAL) == 0)
    return Examples(ids=ids, mask=mask, spans={ORDINARY: ordinary})


def behaviour_figures(found: Replacement, runner: Runner) -> dict[str, float]:
    """Return the losses and divergences with the site left alone, rebuilt, zeroed and at its mean.

    Returns
    -------
    dict
        ``ce``, ``ce_sae``, ``ce_zero``, ``ce_mean``: mean over tokens of −ln p, nats; ``delta_ce`` = ce_sae − ce;
        ``ce_recovered_zero``, ``ce_recovered_mean`` = (ce_abl − ce_sae) / (ce_abl − ce), 1 where nothing is lost;
        ``kl_sae``, ``kl_zero``, ``kl_mean``: mean over tokens of KL(p ‖ p changed), nats; ``behaviour_sequences``,
        ``behaviour_tokens``.

    Notes
    -----
    Source: SAEBench (2503.09532), "core", where ablation is by zeros alone.
    """
    examples = runner.batches
    means = site_means(found.model, examples, sorted(set(found.rebuilds)), span=ORDINARY)
    ways = {
        "sae": found.interventions(),
        "zero": [_ablated(site, "zero") for site in found.rebuilds],
        "mean": [_ablated(site, "mean", means[site]) for site in found.rebuilds],
    }
    tokens_E = np.concatenate([batch.mask.sum(1).numpy() for batch in examples])
    predicted_E = tokens_E - 1
    figures = {"ce": float(np.average(runner.base()[0], weights=predicted_E))}
    for name, interventions in ways.items():
        table = runner.run(interventions)
        nll_E, kl_E = np.asarray(table["intervened"]).reshape(2, -1)
        figures[f"ce_{name}"] = float(np.average(nll_E, weights=predicted_E))
        figures[f"kl_{name}"] = float(np.average(kl_E, weights=tokens_E))
    ce, ce_sae = figures["ce"], figures["ce_sae"]
    figures["delta_ce"] = ce_sae - ce
    for name in ("zero", "mean"):
        lost = figures[f"ce_{name}"] - ce
        figures[f"ce_recovered_{name}"] = (
            (figures[f"ce_{name}"] - ce_sae) / lost if lost else np.nan
        )
    return figures | {
        "behaviour_sequences": float(len(tokens_E)),
        "behaviour_tokens": float(tokens_E.sum()),
    }


def _ablated(site: str, kind: str, values: Tensor | None = None) -> Intervention:
    return Intervention(site=site, op=operation(kind), span=ORDINARY, values=values)


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape))


def _refused(found: str, mend: str, kind: str) -> JobError:
    return JobError(
        f"suite behaviour runs the model with a dictionary in it; {found}. Nothing was written. {mend}.",
        kind=kind,
    )
