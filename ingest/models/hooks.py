"""The one machine behind every family: hooks on the model's own modules.

The forward is the model's own, fused attention included, and ends after the deepest site asked
for; hooks only look. What is returned are the very tensors the model computed (views of them for
per-head sites): nothing is copied and no bit differs, at the price that a captured tensor keeps its
whole storage alive (q, k, v of GPT-2 share one). One capture at a time per model: hooks belong to
the module, not to the call.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ingest.errors import ModelError, SiteError
from ingest.models.backward import check_gradients, check_head, gradients
from ingest.models.contract import ADAPTERS, Anatomy, AttentionSpec, Given, Rotary, SiteInfo, Tap
from ingest.models.lanes import check_lanes, lane_arguments
from ingest.models.listening import listened
from ingest.models.rules import GradRule, Objective
from ingest.models.seeing import shown
from ingest.models.sites import broken_site, no_attention, unknown_site

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.utils.hooks import RemovableHandle


class _LastSiteReached(BaseException):
    """Ends a forward; no ``Exception``, so that no handler inside the model can swallow it."""


class HookedModel:
    """A `ModelAdapter` over any Hugging Face model whose family declares an `Anatomy`.

    Parameters
    ----------
    model
        The Hugging Face model, with or without a head.
    family
        Its model type.
    anatomy
        Where its sites lie, below ``model.base_model``.
    """

    def __init__(self, model: nn.Module, family: str, anatomy: Anatomy) -> None:
        self.model = model
        self.family = family
        self.layers = anatomy.layers
        self.width = anatomy.width
        self.causal = anatomy.causal
        self.max_positions = anatomy.max_positions
        self.vision = anatomy.vision
        self.trained_length = _trained_length(getattr(model, "config", None), anatomy.max_positions)
        base = getattr(model, "base_model", model)
        self.base: nn.Module = base
        self._prefix = str(getattr(base, "base_model_prefix", ""))
        self._attention = anatomy.attention
        self.bends = anatomy.bends
        self._rotary, self._rotary_kind = anatomy.rotary, anatomy.rotary_kind
        self._taps = _taps(anatomy)

    def sites(self) -> dict[str, SiteInfo]:
        """Return the sites by name, in order of depth."""
        return {
            name: SiteInfo(name, tap.shape, depth, tap.note, tap.dtype, tap.fixed)
            for depth, (name, tap) in enumerate(self._taps.items())
        }

    def tap(self, site: str) -> Tap:
        """Return where a site lies."""
        return self._taps[site]

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Return the module paths whose output is a site, with and without the base's prefix."""
        found: dict[str, tuple[str, ...]] = {}
        for name, tap in self._taps.items():
            for path in (tap.module, *tap.also) if tap.end == "out" else ():
                for alias in (path, f"{self._prefix}.{path}"):
                    found[alias] = (*found.get(alias, ()), name)
        return found

    @property
    def attends(self) -> bool:
        """Whether its blocks have attention."""
        return self._attention is not None

    def attention(self, layer: int) -> AttentionSpec:
        """Return what it takes to recompute the attention of block ``layer``.

        Raises
        ------
        SiteError
            There is no such block.
        ModelError
            ``no-attention``: the model mixes positions otherwise.
        """
        if not 0 <= layer < self.layers:
            raise SiteError(
                f"there is no block {layer}; the {self.family} model has blocks 0 to "
                f"{self.layers - 1}."
            )
        if self._attention is None:
            raise no_attention(self.family)
        spec = self._attention(layer)
        if self._rotary is None:
            return spec
        turn: Any = self.base.get_submodule(self._rotary)
        kind = self._rotary_kind(layer)
        frequencies = tuple(getattr(turn, f"{kind}inv_freq").float().tolist())
        magnitude = float(getattr(turn, f"{kind}attention_scaling"))
        return replace(spec, rotary=Rotary(frequencies, magnitude))

    def listen(self, site: str, fn: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call ``fn`` with the value of ``site``, ``[B, T, *shape]``, in every forward.

        Where ``fn`` returns a tensor, the model goes on with that value in place of its own;
        gradients flow through it. Remove the handle (it is a context manager) when done.

        Raises
        ------
        SiteError
            ``unknown-site``; out of the forward, ``site-fixed`` where an edit would change nothing.
        """
        if site not in self._taps:
            raise unknown_site(site, self)
        return listened(self.base, site, self._taps[site], fn)

    def capture(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        sites: Sequence[str],
        *,
        logits: Callable[[Tensor], None] | None = None,
        positions_BT: Tensor | None = None,
        given: Given | None = None,
    ) -> dict[str, Tensor]:
        """Run the model as far as the deepest of ``sites`` and return their values.

        Parameters
        ----------
        input_ids_BT
            int64 token ids, moved to the model's device.
        attention_mask_BT
            1 for a token, 0 for padding; values at padding positions mean nothing.
        sites
            Canonical names (`resolve_sites` makes them).
        logits
            Where given, the forward runs to its end, and this is shown the logits ``[B, T, V]``.
        positions_BT
            Where given, a lane holds several sequences side by side, none seeing another: int64, 0 where one begins and
            at padding (`ingest.models.lanes`).
        given
            Images, and the texts of pairs, for a model that sees them; ids then say only how many rows there are, save
            where images stand among tokens.

        Returns
        -------
        dict
            ``{site: [B, T, *shape]}`` in the order asked, in the compute dtype, on the model's
            device: inference tensors that share memory with each other. Bits depend on the
            batch's shape and padding, the hardware and the number of threads.

        Raises
        ------
        SiteError
            ``unknown-site``; nothing was run.
        ModelError
            ``bad-input``, ``too-long``, ``training-mode``, for logits ``no-head``, for lanes ``lanes-unsupported``, before
            anything runs;
            ``site-broken`` where the forward did not pass a site exactly once with the declared
            shape.
        """
        wanted = list(dict.fromkeys(sites))
        got: dict[str, Tensor] = {}
        if not wanted and logits is None:
            return got
        self._check(input_ids_BT, attention_mask_BT, positions_BT)
        device = next(self.base.parameters()).device
        seen: dict[str, Any] = {
            "input_ids": input_ids_BT.to(device),
            "attention_mask": attention_mask_BT.to(device),
            "use_cache": False,
        }
        if positions_BT is not None:
            seen |= self._lanes(positions_BT.to(device))
        if self.vision is not None:
            seen = shown(self.family, self.vision, seen, given, device)
        if logits is not None:
            check_head(self.model)
        last = len(wanted) if logits is None else 0
        run: Any = self.base if logits is None else self.model
        with ExitStack() as hooks, torch.inference_mode():
            for site in wanted:
                keep = partial(self._keep, got, site, last, tuple(input_ids_BT.shape))
                hooks.enter_context(self.listen(site, keep))
            with suppress(_LastSiteReached):
                output = run(**seen)
                if logits is not None:
                    logits(output.logits)
        if missed := [site for site in wanted if site not in got]:
            raise broken_site(self.family, missed[0], "the forward never reached it")
        return {site: got[site] for site in wanted}

    def gradients(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        sites: Sequence[str],
        objective: Objective,
        rule: GradRule | None = None,
        partner_BT: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Run the whole model and return what a number per example changes by at every site.

        Nothing is differentiated by weights, and nothing before the first site: to each site a zero is added, and what
        is returned is the derivative by it.

        Parameters
        ----------
        input_ids_BT, attention_mask_BT
            See `capture`.
        objective
            Logits ``[B, T, V]`` → one number per example ``[B]``; examples must not depend on one another.
        rule
            What the backward does where the model is not linear, and where it begins; exact where None.
        partner_BT
            Ids of the prompts at the other end of the way, where a rule takes points between; as long as these.

        Returns
        -------
        tuple
            ``{site: [B, T, *shape]}`` in the order asked, zeros where a site has no part in it; and the numbers ``[B]``. Both
            are means where a rule asks for several runs.

        Raises
        ------
        SiteError
            ``unknown-site``, or ``no-gradient`` of what cannot be changed by degrees; nothing was run.
        ModelError
            ``bad-input``, ``too-long``, ``training-mode`` or ``no-head``; ``site-broken`` where the forward did not pass a
            site.
        """
        self._check(input_ids_BT, attention_mask_BT)
        check_gradients(self, sites)
        rule = GradRule() if rule is None else rule
        return gradients(self, input_ids_BT, attention_mask_BT, sites, objective, rule, partner_BT)

    def _keep(
        self,
        got: dict[str, Tensor],
        site: str,
        count: int,
        batch_shape: tuple[int, ...],
        value: Tensor,
    ) -> None:
        if site in got:
            raise broken_site(self.family, site, "the forward passed it twice")
        if tuple(value.shape) != (*batch_shape, *self._taps[site].shape):
            raise broken_site(self.family, site, f"its value has shape {list(value.shape)}")
        got[site] = value
        if len(got) == count:
            raise _LastSiteReached

    def _lanes(self, positions_BT: Tensor) -> dict[str, Any]:
        config: Any = self.model.config
        implementation = str(config._attn_implementation)
        check_lanes(self, implementation)
        assert self._attention is not None
        # Not `attention`: the rotation it looks up would make a GPU stop.
        specs = [self._attention(layer) for layer in range(self.layers)]
        dtype = next(self.base.parameters()).dtype
        return lane_arguments(specs, implementation, positions_BT, dtype)

    def _check(
        self,
        input_ids_BT: Tensor,
        attention_mask_BT: Tensor,
        positions_BT: Tensor | None = None,
    ) -> None:
        if self.model.training:
            raise ModelError(
                f"the {self.family} model is in training mode, where dropout changes every value. "
                "Nothing was run. Call model.eval() first.",
                kind="training-mode",
            )
        shape, mask_shape = list(input_ids_BT.shape), list(attention_mask_BT.shape)
        if len(shape) != 2 or mask_shape != shape or 0 in shape or input_ids_BT.is_floating_point():
            raise ModelError(
                f"input_ids are {input_ids_BT.dtype} {shape} with a mask of {mask_shape}; the "
                f"{self.family} model takes integer ids [B, T] and a mask of the same shape. "
                "Nothing was run.",
                kind="bad-input",
            )
        longest = shape[1] if positions_BT is None else int(positions_BT.max()) + 1
        if self.max_positions is not None and longest > self.max_positions:
            raise ModelError(
                f"sequences of {longest} tokens were given to a {self.family} model that holds "
                f"{self.max_positions} positions. Nothing was run. Cut them to --context "
                f"{self.max_positions} or less.",
                kind="too-long",
            )
        self._check_ids(input_ids_BT)

    def _check_ids(self, input_ids_BT: Tensor) -> None:
        # On a GPU the look would wait for the device; ids come from the host, where it is free.
        if self.vision is not None and self.vision.token is None:
            return  # its rows are no tokens
        config: Any = getattr(self.model, "config", None)
        vocab = getattr(getattr(config, "text_config", config), "vocab_size", None)
        if vocab is None or input_ids_BT.device.type != "cpu":
            return
        low, high = int(input_ids_BT.min()), int(input_ids_BT.max())
        if low < 0 or high >= vocab:
            raise ModelError(
                f"token ids from {low} to {high} were given to a {self.family} model with "
                f"{vocab} tokens. Nothing was run. Use the model's own tokenizer.",
                kind="bad-input",
            )


def adapt(model: nn.Module) -> HookedModel:
    """Return the adapter of a Hugging Face model that is already in memory.

    Raises
    ------
    ModelError
        ``unsupported-family``, listing the known ones.
    """
    config: Any = getattr(model, "config", None)
    family = str(getattr(config, "model_type", type(model).__name__))
    return HookedModel(model, family, family_of(family).anatomy(config))


def family_of(model_type: str) -> Any:
    """Return the `Family` of a Hugging Face model type, its modules known to transformers, or raise ``unsupported-family``."""
    if model_type not in ADAPTERS.names():
        raise ModelError(
            f"models of type {model_type!r} are not supported; known: "
            f"{', '.join(ADAPTERS.names())}. Nothing was loaded. A family is one file in "
            "ingest/models/.",
            kind="unsupported-family",
        )
    family = ADAPTERS.get(model_type)
    if network := getattr(family, "network", ""):
        importlib.import_module(network)
    return family


def _taps(anatomy: Anatomy) -> dict[str, Tap]:
    found = dict(anatomy.before)
    for layer in range(anatomy.layers):
        for name, tap in anatomy.block.items():
            found[f"blocks.{layer}.{name}"] = replace(
                tap,
                module=tap.module.format(l=layer),
                within=tap.within.format(l=layer),
                also=tuple(path.format(l=layer) for path in tap.also),
            )
    return found | dict(anatomy.after)


def _trained_length(config: Any, max_positions: int | None) -> int | None:
    """Return the longest sequence a model was trained on, as far as its config says.

    That is its own ``trained_length``, else what a stretched rotation was stretched from, else the positions it takes.
    """
    own = getattr(config, "trained_length", None)
    if own is None:
        rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
        own = rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None
    return max_positions if own is None else int(own)
