"""Adam whose two moments are held in one byte a value.

A moment is cut into blocks; each block keeps its largest absolute value as float32, and every value as the nearest of
256 codes between -1 and 1 that lie closer together the smaller they are.

Dimensions: B blocks, V values of a block, C codes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BLOCK_VALUES = 256
SMALLEST = 4096
"""Tensors of fewer values keep float32 moments."""
SLICE_BLOCKS = 4096
"""Blocks worked on at once: 1 Mi values, so that float32 moments of them stay in cache."""
DECADES = 7


def dynamic_codes(*, signed: bool) -> Tensor:
    """Return the 256 codes, ascending, float32 [C].

    Decade i of seven, from ``10^(i-6)`` down, holds the centres of ``2^i`` equal bins of [.1, 1] times its size, of both
    signs, and twice as many without signs; 0 and 1 complete them.

    Notes
    -----
    Source: Dettmers et al., "8-bit Optimizers via Block-wise Quantization" (2110.02861), section 2.2.
    """
    values = [0.0, 1.0]
    for i in range(DECADES):
        bins = 2**i if signed else 2 ** (i + 1)
        edges = torch.linspace(0.1, 1, bins + 1, dtype=torch.float64)
        centres = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (i - DECADES + 1)).tolist()
        values += centres
        if signed:
            values += [-value for value in centres]
    return torch.tensor(sorted(values), dtype=torch.float64).float()


class Blocks:
    """One tensor in one byte a value; ``codes`` is uint8 [B·V] and ``peaks`` float32 [B].

    Parameters
    ----------
    table_C
        The codes, ascending.
    least
        Code that positive values get at least.
    """

    def __init__(self, table_C: Tensor, *, least: int = 0) -> None:
        self._table_C, self._least = table_C, least
        self._edges = (table_C[1:] + table_C[:-1]) / 2

    def pack(self, values_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Return (codes uint8 [B, V], peaks float32 [B]) of finite values."""
        peak_B = values_BV.abs().amax(dim=1)
        shares_BV = values_BV / torch.where(peak_B > 0, peak_B, 1.0).unsqueeze(1)
        codes_BV = torch.bucketize(shares_BV, self._edges, out_int32=True)
        if self._least:
            codes_BV = torch.where(shares_BV > 0, codes_BV.clamp(min=self._least), codes_BV)
        return codes_BV.to(torch.uint8), peak_B

    def unpack(self, codes_BV: Tensor, peak_B: Tensor) -> Tensor:
        """Return the float32 values [B, V] that codes stand for."""
        return self._table_C[codes_BV.int()] * peak_B.unsqueeze(1)


class Adam8bit(torch.optim.Optimizer):
    """Adam that holds the moments of large tensors in blocks of 256 bytes and computes in float32.

    Tensors below 4096 values keep float32 moments. Takes a quarter of Adam's memory for moments.

    Notes
    -----
    Source: Dettmers et al. (2110.02861); blocks of 256 values as in today's ``bitsandbytes``, 2048 there.
    Deviation: a second moment that is not 0 never becomes 0, or a step would be divided by ``eps``: rows of latents that
    seldom fire share blocks with others'.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, betas: tuple[float, float], eps: float
    ) -> None:
        super().__init__(params, {"lr": 0.0, "betas": betas, "eps": eps})
        self._first = Blocks(dynamic_codes(signed=True))
        self._second = Blocks(dynamic_codes(signed=False), least=1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step with the gradients there are."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)

    def _step(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(_fresh(parameter))
        state["step"] += 1
        steps = float(state["step"])
        (first_decay, second_decay), eps = group["betas"], group["eps"]
        rate = group["lr"] / (1 - first_decay**steps)
        root = (1 - second_decay**steps) ** 0.5

        def update(value: Tensor, grad: Tensor, first: Tensor, second: Tensor) -> None:
            first.lerp_(grad, 1 - first_decay)
            second.mul_(second_decay).addcmul_(grad, grad, value=1 - second_decay)
            value.addcdiv_(first, second.sqrt().div_(root).add_(eps), value=-rate)

        if "first" in state:
            update(parameter, gradient, state["first"], state["second"])
            return
        flat, grad = parameter.view(-1), gradient.reshape(-1)
        for low in range(0, len(state["first_peaks"]), SLICE_BLOCKS):
            blocks = slice(low, low + SLICE_BLOCKS)
            values = slice(low * BLOCK_VALUES, (low + SLICE_BLOCKS) * BLOCK_VALUES)
            first = self._first.unpack(state["first_codes"][blocks], state["first_peaks"][blocks])
            second = self._second.unpack(
                state["second_codes"][blocks], state["second_peaks"][blocks]
            )
            mine = flat[values]
            update(mine, grad[values], first.view(-1)[: len(mine)], second.view(-1)[: len(mine)])
            for name, packer, held in (
                ("first", self._first, first),
                ("second", self._second, second),
            ):
                codes, peaks = packer.pack(held)
                state[f"{name}_codes"][blocks], state[f"{name}_peaks"][blocks] = codes, peaks

    @torch.no_grad()
    def forget(self, parameter: nn.Parameter, rows_A: Tensor) -> None:
        """Set the moments of some rows to 0."""
        state = self.state[parameter]
        for name, packer in (("first", self._first), ("second", self._second)):
            if name in state:
                state[name][rows_A] = 0
            elif f"{name}_codes" in state:
                held = packer.unpack(state[f"{name}_codes"], state[f"{name}_peaks"])
                rows = held.view(-1)[: parameter.numel()].view(parameter.shape)
                rows[rows_A] = 0
                state[f"{name}_codes"], state[f"{name}_peaks"] = packer.pack(held)


def _fresh(parameter: Tensor) -> dict[str, Tensor]:
    step = torch.tensor(0.0)
    if parameter.numel() < SMALLEST:
        zeros = torch.zeros_like(parameter)
        return {"step": step, "first": zeros, "second": zeros.clone()}
    blocks = -(-parameter.numel() // BLOCK_VALUES)
    state = {"step": step}
    for name, signed in (("first", True), ("second", False)):
        shape = (blocks, BLOCK_VALUES)
        code = int((dynamic_codes(signed=signed) == 0).nonzero())
        state[f"{name}_codes"] = torch.full(shape, code, dtype=torch.uint8, device=parameter.device)
        state[f"{name}_peaks"] = torch.zeros(blocks, device=parameter.device)
    return state
