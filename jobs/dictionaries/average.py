"""A running mean of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """An exponential mean of parameters over steps, without the bias towards its start."""

    def __init__(self, named: Mapping[str, nn.Parameter], decay: float) -> None:
        self._named, self._decay = dict(named), decay
        self._means = {name: torch.zeros_like(p) for name, p in self._named.items()}
        self._weight = torch.zeros((), dtype=torch.float64)

    @torch.no_grad()
    def note(self) -> None:
        """Take in the weights of a step."""
        self._weight.mul_(self._decay).add_(1 - self._decay)
        for name, parameter in self._named.items():
            self._means[name].lerp_(parameter, 1 - self._decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the means in the parameters' place for a while."""
        held = {name: p.detach().clone() for name, p in self._named.items()}
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(self._means[name] / float(self._weight))
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._named.items():
                    parameter.copy_(held[name])

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, for checkpoints."""
        means = {f"mean.{name}": mean for name, mean in self._means.items()}
        return {**means, "mean": self._weight}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Undo ``tensors``."""
        self._weight.copy_(tensors["mean"])
        for name, mean in self._means.items():
            mean.copy_(tensors[f"mean.{name}"])
