"""The public names, pinned: a name is added or dropped here, in the same change, or not at all.

To change the list: change the package's ``__all__`` and paste the line the failing test prints.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import types
from pathlib import Path

import pytest

PUBLIC: dict[str, list[str]] = {}


def _source(package):
    return Path(inspect.getfile(package)).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_pinned(name):
    package = importlib.import_module(name)
    names = list(package.__all__)
    assert names == PUBLIC[name], f'paste into PUBLIC:\n    "{name}": {names},'.replace("'", '"')


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_sorted_and_all_there(name):
    package = importlib.import_module(name)
    assert package.__all__ == sorted(set(package.__all__))
    assert [public for public in package.__all__ if not hasattr(package, public)] == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_package_exports_nothing_beside_its_public_names(name):
    package = importlib.import_module(name)
    exported = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_")
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"{name}.{key}")
    }
    assert exported - {"annotations"} == set(package.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_an_init_file_only_says_what_it_is_and_re_exports(name):
    body = ast.parse(_source(importlib.import_module(name))).body
    assert ast.get_docstring(ast.Module(body, []))
    kinds = [type(statement).__name__ for statement in body[1:]]
    assert set(kinds) <= {"Import", "ImportFrom", "Assign", "AnnAssign"}
    assert sum(kind in {"Assign", "AnnAssign"} for kind in kinds) == 1
