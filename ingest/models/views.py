"""Views of a module's tensor as a site's value: pure, and writing through them writes the tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def heads_of(count: int, head_width: int) -> Callable[[Tensor], Tensor]:
    """Return the view ``[..., H * dh] → [..., H, dh]``."""
    return lambda value: value.view(*value.shape[:-1], count, head_width)


def heads_of_slice(start: int, count: int, head_width: int) -> Callable[[Tensor], Tensor]:
    """Return the view of ``H * dh`` features from ``start`` on as ``[..., H, dh]``.

    A slice and not a split: autograd forbids writing through one of several views made at once.
    """
    stop = start + count * head_width
    cut = heads_of(count, head_width)
    return lambda value: cut(value[..., start:stop])


def positions_first(value_BHTd: Tensor) -> Tensor:
    """Return the view ``[B, H, T, dh] → [B, T, H, dh]`` of what attention sees."""
    return value_BHTd.transpose(1, 2)


def one_row(value_BD: Tensor) -> Tensor:
    """Return the view ``[B, D] → [B, 1, D]`` of what there is once a sequence."""
    return value_BD.unsqueeze(1)
