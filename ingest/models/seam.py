"""The seam inside a block: what its attention module hands to its attention function.

q and k after rotation are no module's input or output; they exist only between the two. A module that is
listened to looks its attention function up under our name, which shows (or replaces) query and key and then
calls the function the module would have called, with the very tensors: mask, kernel and bits are its own.
Only that one module's look-up is diverted, and only while somebody listens.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    Listener = Callable[[Tensor], Tensor | None]

End = Literal["query", "key"]
_NAME = "actlake_seam"


class _Seam:
    """A module's config in all but the name of the attention function, and who listens there."""

    _attn_implementation = _NAME

    def __init__(self, own: Any) -> None:
        self.own = own
        self.listeners: OrderedDict[int, tuple[End, Listener]] = OrderedDict()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copying asks for these before there is an own config
            raise AttributeError(name)
        return getattr(self.own, name)

    def shown(self, end: End, value: Tensor) -> Tensor:
        """Return the value after every listener at this end saw it, in the order they came."""
        for at, fn in list(self.listeners.values()):
            new = fn(value) if at == end else None
            value = value if new is None else new
        return value


class _Handle(RemovableHandle):
    """Also gives the module its config back when the last listener goes."""

    def __init__(self, module: nn.Module, seam: _Seam) -> None:
        super().__init__(seam.listeners)
        self._module, self._seam = module, seam

    def remove(self) -> None:
        super().remove()
        held: Any = self._module.config
        if not self._seam.listeners and held is self._seam:
            self._module.config = self._seam.own


def listen_at(module: nn.Module, end: End, fn: Listener) -> RemovableHandle:
    """Call ``fn`` with the query ``[B, H, T, dh]`` or key ``[B, G, T, dh]`` of every forward of ``module``.

    Parameters
    ----------
    module
        An attention module of transformers, which looks its function up by ``config._attn_implementation``.
    fn
        A tensor it returns takes the value's place; queries are shown before keys.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _through)
    held: Any = module.config
    seam = held if isinstance(held, _Seam) else _Seam(held)
    handle = _Handle(module, seam)
    seam.listeners[handle.id] = (end, fn)
    module.config = seam  # type: ignore[assignment]
    return handle


def _through(
    module: nn.Module, query_BHTd: Tensor, key_BGTd: Tensor, *rest: Any, **options: Any
) -> Any:
    """Show query and key, then do what the module would have done."""
    seam: Any = module.config
    query_BHTd = seam.shown("query", query_BHTd)
    key_BGTd = seam.shown("key", key_BGTd)
    # The function may ask the module for its config (flash attention does): it finds the real one.
    module.config = seam.own
    try:
        return _own_function(module)(module, query_BHTd, key_BGTd, *rest, **options)
    finally:
        module.config = seam


def _own_function(module: nn.Module) -> Any:
    home: Any = sys.modules[type(module).__module__]
    config: Any = module.config
    return home.ALL_ATTENTION_FUNCTIONS.get_interface(
        config._attn_implementation, home.eager_attention_forward
    )
