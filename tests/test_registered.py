"""Laws over everything registered: nothing to edit here for a newcomer.

Every ``Registry`` in the three packages is found by looking through their modules; its folder is
scanned; each class it holds must be a small frozen config that says what it is and survives JSON.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import pkgutil
import textwrap
import typing

import pytest

import ingest
import jobs
import store
from store.errors import ActlakeError, InvalidInputError
from store.registry import Registry, to_json


def _registries():
    """Return every registry of ours once, by the package it scans."""
    found = {}
    for package in (store, ingest, jobs):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            try:
                members = vars(importlib.import_module(module.name))
            except ModuleNotFoundError as error:
                if (error.name or "").split(".")[0] in {"store", "ingest", "jobs"}:
                    raise
                continue  # its library is not installed; the registry lists it as unavailable
            found |= {v.package: v for v in members.values() if isinstance(v, Registry)}
    return found


REGISTRIES = _registries()
REGISTERED = {
    f"{package}:{name}": (registry, name)
    for package, registry in sorted(REGISTRIES.items())
    for name in registry.names()
}

each_registry = pytest.mark.parametrize("registry", REGISTRIES.values(), ids=list(REGISTRIES))
each_registered = pytest.mark.parametrize(
    ("registry", "name"), REGISTERED.values(), ids=list(REGISTERED)
)

# Values for required fields, tried in turn: what is legal differs from one config to the next.
SAMPLES = {
    int: (8, 2, 1),
    float: (0.5, 1.0, 2.0),
    str: ("x",),
    bool: (False,),
    tuple[str, ...]: (("x", "y"),),
}


def _sample(cls):
    """Build a config from its defaults, its required fields filled by type, or return None."""
    hints = typing.get_type_hints(cls)
    needed = [
        field.name
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if any(hints[name] not in SAMPLES for name in needed):
        return None
    for turn in range(3):
        values = {name: SAMPLES[hints[name]][turn % len(SAMPLES[hints[name]])] for name in needed}
        try:
            return cls(**values)
        except (ActlakeError, ValueError):
            continue
    return None


def test_there_are_registries():
    assert REGISTRIES
    assert REGISTERED


@each_registry
def test_names_are_sorted_and_unique_and_their_classes_differ(registry):
    names = registry.names()
    assert names == sorted(set(names))
    assert len({registry.get(name) for name in names}) == len(names)


@each_registry
def test_an_unknown_name_lists_the_known_ones(registry):
    with pytest.raises(InvalidInputError, match="unknown-name") as caught:
        registry.get("no such name")
    assert all(name in str(caught.value) for name in registry.names())


@each_registry
def test_what_is_unavailable_names_the_package_to_install(registry):
    for module, package in registry.unavailable().items():
        with pytest.raises(InvalidInputError, match=f"missing-package.*{package}"):
            registry.get(module)


@each_registry
def test_a_second_class_of_a_name_is_refused(registry):
    name = registry.names()[0]
    with pytest.raises(RuntimeError, match=f"called {name!r}"):
        registry.register(name)(type("Other", (), {}))


@each_registered
def test_a_registered_class_is_a_frozen_keyword_only_dataclass(registry, name):
    cls = registry.get(name)
    assert dataclasses.is_dataclass(cls)
    assert cls.__dataclass_params__.frozen
    assert [field.name for field in dataclasses.fields(cls) if not field.kw_only] == []
    assert cls.kind == name


@each_registered
def test_a_registered_class_says_what_it_and_each_field_is(registry, name):
    cls = registry.get(name)
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # what dataclasses write by themselves
    [body] = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    fields = {field.name for field in dataclasses.fields(cls)}
    silent = [
        statement.target.id
        for statement, following in zip(body.body, [*body.body[1:], None], strict=True)
        if isinstance(statement, ast.AnnAssign)
        and statement.target.id in fields
        and not (
            isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        )
    ]
    assert silent == [], f"{cls.__qualname__}: fields without a line that says what they are"


@each_registered
def test_a_config_survives_json(registry, name):
    config = _sample(registry.get(name))
    assert config is not None, f"{name}: teach _sample the type of its required fields"
    described = json.loads(json.dumps(to_json(config)))
    assert described["kind"] == name
    assert registry.parse(described) == config
    assert to_json(registry.parse(described)) == to_json(config)


@each_registered
def test_an_unknown_field_is_refused(registry, name):
    with pytest.raises(InvalidInputError, match=r"unknown-field.*no_such_field"):
        registry.parse({"kind": name, "no_such_field": 1})
