"""Registries: a name maps to a frozen config class, and a folder is scanned to fill the map.

Adding a thing is adding one file: nothing lists names anywhere else. The price is that asking for any name
imports the whole folder once, so files in a registry folder import heavy libraries inside functions.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from store.errors import InvalidInputError

C = TypeVar("C", bound=type)


class Registry:
    """Names of one kind of thing, found by importing every module of one package.

    Parameters
    ----------
    noun
        What is registered, for messages: ``"source"``.
    package
        Dotted name of the folder that is scanned on first use.
    """

    def __init__(self, noun: str, package: str) -> None:
        self.noun = noun
        self.package = package
        self._classes: dict[str, Any] = {}
        self._unavailable: dict[str, str] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[C], C]:
        """Return a decorator that files a class under ``name``; a second class of that name is refused."""

        def file(cls: C) -> C:
            held = self._classes.get(name)
            if held is not None and held.__qualname__ != cls.__qualname__:
                msg = f"two {self.noun}s are called {name!r}: {held.__module__}, {cls.__module__}"
                raise RuntimeError(msg)
            self._classes[name] = cls
            cls.kind = name  # type: ignore[attr-defined]
            return cls

        return file

    def _scan(self) -> None:
        if self._scanned:
            return
        folder = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(folder.__path__):
            try:
                importlib.import_module(f"{self.package}.{module.name}")
            except ModuleNotFoundError as error:
                if error.name is None or error.name.split(".")[0] in {"store", "ingest", "jobs"}:
                    raise
                self._unavailable[module.name] = error.name
        self._scanned = True

    def names(self) -> list[str]:
        """Return the registered names, sorted."""
        self._scan()
        return sorted(self._classes)

    def unavailable(self) -> Mapping[str, str]:
        """Return the modules that could not be imported, each with the package it lacks."""
        self._scan()
        return dict(self._unavailable)

    def get(self, name: str) -> Any:
        """Return the class filed under ``name``.

        Raises
        ------
        InvalidInputError
            ``unknown-name`` with the known ones listed, or ``missing-package`` where its module lacks one.
        """
        self._scan()
        if name in self._classes:
            return self._classes[name]
        if name in self._unavailable:
            raise InvalidInputError(
                f"{self.noun} {name!r} needs the package {self._unavailable[name]!r}, which is not "
                f"installed. Nothing was started. Install it: pip install {self._unavailable[name]}",
                kind="missing-package",
            )
        raise InvalidInputError(
            f"there is no {self.noun} called {name!r}; known: {', '.join(self.names())}. "
            "Nothing was started.",
            kind="unknown-name",
        )

    def parse(self, config: Mapping[str, Any]) -> Any:
        """Build the config that ``to_json`` described: ``{"kind": name, field: value, …}``."""
        fields = dict(config)
        cls = self.get(str(fields.pop("kind", "")))
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InvalidInputError(
                f"{self.noun} {cls.kind!r} has no field {', '.join(unknown)}; "
                f"known: {', '.join(sorted(known))}. Nothing was started.",
                kind="unknown-field",
            )
        return cls(**{name: _tuples(value) for name, value in fields.items()})


def _tuples(value: Any) -> Any:
    """Return JSON lists as tuples, as frozen configs hold them."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def to_json(config: Any) -> dict[str, Any]:
    """Return a registered config as ``{"kind": name, field: value, …}``; ``Registry.parse`` undoes it."""
    return {"kind": config.kind, **dataclasses.asdict(config)}
