"""Listening at one site: a hook on its module that shows the site's view of a tensor and puts an edit back into it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.utils.hooks import RemovableHandle

from ingest.errors import SiteError
from ingest.models.seam import listen_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from ingest.models.contract import Tap


def listened(
    base: nn.Module, site: str, tap: Tap, fn: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Call ``fn`` with the value at a tap, ``[B, T, *shape]``, in every forward; see `HookedModel.listen`.

    Parameters
    ----------
    base
        The model the tap's paths lead down from.
    """
    module = base.get_submodule(tap.module)
    if tap.fixed:
        fn = partial(_only_shown, fn, site)
    if tap.within:
        return _Folded(base.get_submodule(tap.within), module, tap, fn)
    if tap.end == "query" or tap.end == "key":
        return listen_at(module, tap.end, partial(_edited, tap, fn))
    return _hooked(module, tap, fn)


def _only_shown(fn: Callable[[Tensor], Tensor | None], site: str, value: Tensor) -> None:
    """Show a value that cannot be edited."""
    if fn(value) is not None:
        raise SiteError(
            f"{site} was to be edited; the model does not go on with it, so that would change nothing. The forward was given "
            "up. Edit what is computed from it.",
            kind="site-fixed",
            site=site,
        )


def _hooked(module: nn.Module, tap: Tap, fn: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    """Call ``fn`` at one end of a module in every forward."""
    if tap.end == "out":
        return module.register_forward_hook(partial(_on_output, tap, fn))
    return module.register_forward_pre_hook(partial(_on_input, tap, fn), with_kwargs=True)


def _rounds(new: Tensor, old: Tensor) -> bool:
    """Return whether putting one tensor into the other would make whole numbers of it."""
    return new.is_floating_point() and not old.is_floating_point()


class _Folded(RemovableHandle):
    """Listens to a module whose tensors lie flat, and shows them as ``[B, T, …]``."""

    def __init__(
        self,
        around: nn.Module,
        module: nn.Module,
        tap: Tap,
        fn: Callable[[Tensor], Tensor | None],
    ) -> None:
        super().__init__(OrderedDict())
        self._shape: tuple[int, ...] = ()
        self._handles = (
            around.register_forward_pre_hook(self._remember, with_kwargs=True),
            _hooked(module, replace(tap, view=self._folded(tap.view)), fn),
        )

    def _folded(self, view: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda value: view(value.view(*self._shape, *value.shape[1:]))

    def _remember(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = args[0] if args else kwargs["hidden_states"]
        self._shape = tuple(value.shape[:2])

    def remove(self) -> None:
        super().remove()
        for handle in self._handles:
            handle.remove()


def _on_output(
    tap: Tap, fn: Callable[[Tensor], Tensor | None], _module: nn.Module, _args: Any, output: Any
) -> Any:
    if isinstance(output, tuple):
        edited = _edited(tap, fn, output[tap.item])
        rest = output[tap.item + 1 :]
        return None if edited is None else (*output[: tap.item], edited, *rest)
    return _edited(tap, fn, output)


def _on_input(
    tap: Tap,
    fn: Callable[[Tensor], Tensor | None],
    _module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if args:
        edited = _edited(tap, fn, args[0])
        return None if edited is None else ((edited, *args[1:]), kwargs)
    edited = _edited(tap, fn, kwargs["hidden_states"])
    return None if edited is None else (args, {**kwargs, "hidden_states": edited})


def _edited(tap: Tap, fn: Callable[[Tensor], Tensor | None], value: Tensor) -> Tensor | None:
    part = tap.view(value)
    new = fn(part)
    if new is not None and (new.shape != part.shape or _rounds(new, part)):
        raise SiteError(
            f"an edit at {tap.module} has {new.dtype} {list(new.shape)}, where its value has {part.dtype} {list(part.shape)}. "
            "The forward was given up. Return a tensor of that shape; whole numbers stay whole.",
            kind="bad-edit",
        )
    if new is None or part is value:
        return new
    clone = value.clone()
    tap.view(clone).copy_(new)
    return clone
