"""One verb, one frozen config: command line ↔ YAML or JSON ↔ Python, all equal.

Flags that make a grid take commas (``--latents 4k,16k``). Counts may be written 4k, 16k, 1M: for latents in the
field's binary sense (16k = 16 384), for rows in the decimal one (400k = 400 000).
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import yaml
from tyro import MISSING
from tyro.constructors import PrimitiveConstructorSpec

from jobs.errors import UsageError
from jobs.values import BINARY, DECIMAL, count, fitted, grid, share, split_names


def _spec(read: Any, show: Any, metavar: str, kind: type) -> PrimitiveConstructorSpec[Any]:
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda args: read(args[0]),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [show(value)],
    )


def _grid(read: Any, metavar: str) -> PrimitiveConstructorSpec[Any]:
    show = ",".join
    return _spec(
        lambda text: grid(text, read), lambda v: show(map(str, v)), f"{metavar}[,{metavar}…]", tuple
    )


Rows = Annotated[int, _spec(lambda t: count(t, DECIMAL), str, "N", int)]
Latents = Annotated[tuple[int, ...], _grid(lambda t: count(t, BINARY), "N")]
Numbers = Annotated[tuple[int, ...], _grid(int, "N")]
Shares = Annotated[tuple[float, ...], _grid(share, "X")]
Names = Annotated[tuple[str, ...], _spec(split_names, ",".join, "NAME[,NAME…]", tuple)]
Words = Annotated[tuple[str, ...], _grid(str, "NAME")]


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb takes.

    Values may be given as flags are: ``Train(latents="4k,16k")`` is ``Train(latents=(4096, 16384))``.

    Raises
    ------
    UsageError
        ``bad-config``: a value does not fit its setting.
    """

    json: bool = False
    """Print one JSON value instead of text; errors too."""
    config: str | None = None
    """YAML or JSON file of this verb's settings; flags win over it."""
    show_config: bool = False
    """Print the settings as YAML and stop."""

    def __post_init__(self) -> None:
        for name, declared in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if value is MISSING:
                continue
            try:
                object.__setattr__(self, name, _given(fitted(declared, value)))
            except ValueError as error:
                raise UsageError(
                    f"{type(self).__name__.lower()} has the setting {name}: {value!r}, which does not fit "
                    f"({error}). Nothing was started. `actlake VERB --help` shows what it takes.",
                    kind="bad-config",
                ) from error


def _given(value: Any) -> Any:
    if value == "" or (isinstance(value, tuple) and "" in value):
        msg = "it is empty"  # an empty path would mean the current folder
        raise ValueError(msg)
    return value


def to_yaml(config: Verb, *, without: Sequence[str] = ()) -> str:
    """Return a config as YAML that ``--config`` reads."""
    skipped = {"json", "config", "show_config", *without}
    fields = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(config).items()
        if name not in skipped
    }
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
