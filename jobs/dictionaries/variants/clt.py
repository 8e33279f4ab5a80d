"""Cross-layer transcoder: latents of one layer write to the MLP outputs of that layer and all later ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jobs.batches import Widths
from jobs.dictionaries.activations import activation, check_activation
from jobs.dictionaries.contract import VARIANTS, check_sizes, require
from jobs.dictionaries.dictionary import Dictionary
from jobs.dictionaries.losses.auxk import auxk
from jobs.dictionaries.losses.nmse import nmse
from store.errors import InvalidInputError


@VARIANTS.register("clt")
@dataclass(frozen=True, kw_only=True, slots=True)
class CrossLayerTranscoder:
    """Rebuilds the outputs of all layers from latents that each read one layer and write to it and the later ones.

    ``π_s = x_s W_enc,s + b_enc,s`` for the latents of layer s, ``ŷ_t = Σ_{s<=t} f_s W_dec,s→t + b_dec,t``; loss ``NMSE``
    over the outputs side by side, each scaled to a mean square of 1, ``+ aux_weight · AuxK``; free decoder norms; the
    decoder starts at 0.

    Notes
    -----
    Source: Ameisen et al., "Circuit Tracing: Revealing Computational Graphs in Language Models" (Anthropic, March 2025),
    which uses JumpReLU with a tanh penalty. Deviation: one BatchTopK budget over all layers unless asked otherwise.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"target", "columns"})

    latents: int
    """Number of latents over all layers, a multiple of their number."""
    k: int
    """Mean active latents of a row over all layers, in [1, latents]."""
    activation: str = "batch_topk"
    """``batch_topk``, ``topk``, or ``relu`` with an L1 penalty steered to k."""
    l1_weight: float = 0.05
    """Weight of that penalty before it is steered, >= 0."""
    aux_weight: float = 1 / 32
    """Weight of the AuxK loss, >= 0."""

    def __post_init__(self) -> None:
        check_sizes(
            "clt", latents=self.latents, k=self.k, aux_weight=self.aux_weight, l1_weight=self.l1_weight
        )  # fmt: skip
        check_activation(self.activation)

    def build(self, widths: int | Widths, *, seed: int) -> Dictionary:
        """Return a fresh dictionary for rows of these widths; raises ``layers-differ``, ``invalid-config``."""
        widths = Widths.of(widths) if isinstance(widths, int) else widths
        if len(widths.inputs) != len(widths.outputs) or len(set(widths.inputs)) != 1:
            raise InvalidInputError(
                f"a cross-layer transcoder was asked for on inputs of widths {list(widths.inputs)} and targets of widths "
                f"{list(widths.outputs)}; it takes one target for each input, and inputs of one width. Nothing was "
                "started. Name the same layers in --site and --target, in order.",
                kind="layers-differ",
            )
        layers = len(widths.inputs)
        require(
            "latents", self.latents, f"a multiple of {layers}, the layers", holds=self.latents % layers == 0
        )  # fmt: skip
        chosen = activation(self.activation, self.k, self.l1_weight)
        return Dictionary(
            widths,
            self.latents,
            sparsifier=chosen.sparsifier,
            penalty=chosen.penalty,
            losses=((1.0, nmse), (self.aux_weight, auxk)),
            centred=False,
            unit=False,
            tied=False,
            causal=True,
            seed=seed,
        )
