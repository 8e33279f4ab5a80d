"""Processes that train one dictionary: what they hold of a batch, and how they agree.

With one process everything here is the identity, so there is one code path. Ranks either hold every w-th row of each
batch and all latents, or all rows and a run of the latents.

Dimensions: N pairs or values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks(Protocol):
    """Processes that sum, compare and collect tensors; all of them call the same methods in the same order."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        ...

    @property
    def world(self) -> int:
        """How many there are."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks of equal shapes."""
        ...

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest over ranks, element by element."""
        ...

    def collect(self, values_N: Tensor) -> list[Tensor]:
        """Return every rank's tensor [N, ...] in the order of ranks; N may differ."""
        ...


@dataclass(frozen=True)
class Alone:
    """One process."""

    rank: int = 0
    world: int = 1

    def sum(self, value: Tensor) -> Tensor:
        """Return the value itself."""
        return value

    def largest(self, value: Tensor) -> Tensor:
        """Return the value itself."""
        return value

    def collect(self, values_N: Tensor) -> list[Tensor]:
        """Return the tensor itself."""
        return [values_N]


ALONE = Alone()


class Processes:
    """The processes of ``torch.distributed``'s default group, or of one given."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)

    def sum(self, value: Tensor) -> Tensor:
        """Return the sum over ranks of equal shapes."""
        total = value.detach().clone().contiguous()
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=self._group)
        return total

    def largest(self, value: Tensor) -> Tensor:
        """Return the largest over ranks, element by element."""
        top = value.detach().clone().contiguous()
        dist.all_reduce(top, op=dist.ReduceOp.MAX, group=self._group)
        return top

    def collect(self, values_N: Tensor) -> list[Tensor]:
        """Return every rank's tensor [N, ...] in the order of ranks; N may differ."""
        mine = torch.tensor([len(values_N)], device=values_N.device)
        sizes = [torch.zeros_like(mine) for _ in range(self.world)]
        dist.all_gather(sizes, mine, group=self._group)
        longest = max(int(size) for size in sizes)
        padded = values_N.new_zeros((longest, *values_N.shape[1:]))
        padded[: len(values_N)] = values_N
        found = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(found, padded, group=self._group)
        return [one[: int(size)] for one, size in zip(found, sizes, strict=True)]


@dataclass(frozen=True)
class Share:
    """Which part of a batch's matrix of scores a process holds.

    Parameters
    ----------
    ranks
        The processes that hold the rest.
    latents
        First latent held and latents in all, where latents are shared out; None: rows are, every ``world``-th from
        ``rank`` on.
    """

    ranks: Ranks = ALONE
    latents: tuple[int, int] | None = None

    @property
    def latent_ranks(self) -> Ranks:
        """The processes that share out the latents; alone where rows are shared out."""
        return self.ranks if self.latents is not None else ALONE

    @property
    def row_ranks(self) -> Ranks:
        """The processes that share out the rows; alone where latents are shared out."""
        return self.ranks if self.latents is None else ALONE

    def rows(self, held: int) -> int:
        """Return the rows of the whole batch."""
        return held if self.latents is not None else held * self.ranks.world

    def keys(self, flat_N: Tensor, held: int) -> Tensor:
        """Return the places of pairs in the whole matrix [rows, latents], given those in the part held."""
        row, latent = flat_N // held, flat_N % held
        if self.latents is not None:
            first, everything = self.latents
            return row * everything + first + latent
        return (row * self.ranks.world + self.ranks.rank) * held + latent


WHOLE = Share()


class _SumForward(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        return ranks.sum(value)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SumBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum(grads[0]), None


def summed(value: Tensor, ranks: Ranks) -> Tensor:
    """Return the sum over ranks of partial results that all of them go on with; its gradient is each part's own."""
    if ranks.world == 1:
        return value
    out: Tensor = _SumForward.apply(value, ranks)  # type: ignore[no-untyped-call]
    return out


def shared(value: Tensor, ranks: Ranks) -> Tensor:
    """Return a value that each rank uses for a part of the result; its gradient is the sum of theirs."""
    if ranks.world == 1:
        return value
    out: Tensor = _SumBackward.apply(value, ranks)  # type: ignore[no-untyped-call]
    return out


def whole_rows(mine_RD: Tensor, ranks: Ranks) -> Tensor:
    """Return the rows of a batch in its order, given every ``world``-th of them."""
    return torch.stack(ranks.collect(mine_RD), dim=1).flatten(0, 1)


def told_by_first(text: str, ranks: Ranks) -> str:
    """Return the first rank's text on every rank; all of them wait for it."""
    if ranks.world == 1:
        return text
    data = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    return bytes(ranks.collect(data)[0].tolist()).decode()


def ranks_of_environment(device: str = "cpu") -> Ranks:
    """Return the processes that ``torchrun`` or Ray Train started this one with; one alone where none did.

    Joins ``torch.distributed``'s default group where it has not been joined: gloo, or nccl on GPUs.
    """
    if not dist.is_available():
        return ALONE
    if not dist.is_initialized():
        if not dist.is_torchelastic_launched():
            return ALONE
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Processes() if dist.get_world_size() > 1 else ALONE
