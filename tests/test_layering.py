"""The layers hold: who may import whom, one door per heavy dependency, no cycles, light parts stay light.

Read from the source alone, so imports inside functions and for types only count as well. The rules
are the tables below; ``test_a_bad_tree_is_caught`` proves that each of them can fail.
"""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("store", "ingest", "jobs")

FRONT_DOOR = ("jobs.cli", "jobs.verbs", "jobs.demo")
"""See everything and wire it."""

SCIENCE = ("jobs.dictionaries", "jobs.circuits", "jobs.kernels", "jobs.features", "jobs.export")
"""Never import one another; what they share lies at the root of jobs, which does not import them."""

ASSEMBLY = ("jobs.config",)
"""Beside the front door, may name the sciences: one verb, one config."""

ALLOWED = {
    "store": ("store",),
    "ingest": ("ingest", "store"),
    "jobs": ("jobs", "store", "ingest.models", "ingest.contract"),
}
"""What a package may import of ours."""

DOORS = {
    "ray": ("jobs.runtimes.ray", "jobs.runtimes.ray_train"),
    "zarr": ("store.codecs", "jobs.export"),
    "numcodecs": ("store.codecs", "jobs.export"),
    "pyarrow": ("store.tables", "store.conditions", "ingest.sources"),
    "polars": ("store.frames", "jobs.features"),
    "transformers": ("ingest.models", "ingest.sources"),
    "triton": ("jobs.kernels.impls",),
    "matplotlib": ("jobs.report.plots",),
    "fsspec": ("store.object_store",),
    "datasets": ("ingest.sources.huggingface",),
    "PIL": ("ingest.models.pictures", "ingest.models.toy"),
    "torch": ("ingest", "jobs"),
    "tensorboardX": ("jobs.dictionaries.trackers",),
    "wandb": ("jobs.dictionaries.trackers",),
    "trackio": ("jobs.dictionaries.trackers",),
    "tyro": ("jobs.cli", "jobs.config", "jobs.progress"),
    "rich": ("jobs.cli", "jobs.config", "jobs.progress"),
    "yaml": ("jobs.cli", "jobs.config", "jobs.progress"),
}
"""Where a dependency may be imported, lazily, for types or otherwise."""

ENVIRONMENT = ("jobs.cli", "jobs.runtimes.ray", "jobs.kernels.impls")
"""The only readers of environment variables."""

TEST_KIT = "store.testing"
"""Shipped, but imported by tests only."""

LIGHT = (
    "store",
    "ingest.models",
    "jobs.kernels",
    "jobs.dictionaries",
    "jobs.codebook",
    "jobs.codes",
)
HEAVY = ("ray", "zarr", "numcodecs", "polars", "matplotlib", "tyro", "rich", "yaml", "triton")
"""The first must import without the second: GPU boxes often lack them."""


@dataclass(frozen=True)
class Import:
    """One import statement: who, whom, and how."""

    source: str
    target: str
    line: int
    eager: bool


def modules(root: Path) -> dict[str, Path]:
    """Return every module below the three packages of a tree, by dotted name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path
    return found


class _Visitor(ast.NodeVisitor):
    """Collects imports with the circumstances they happen in, and reads of the environment."""

    def __init__(self, name: str, known: set[str], *, package: bool):
        self.name, self.known = name, known
        self.base = name if package else name.rpartition(".")[0]
        self.depth, self.types = 0, 0
        self.imports: list[Import] = []
        self.environment: list[int] = []

    def _add(self, target: str, line: int) -> None:
        eager = self.depth == 0 and self.types == 0
        self.imports.append(Import(self.name, target, line, eager))

    def visit_Import(self, node):
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node):
        base = node.module or ""
        if node.level:
            above = self.base.split(".")[: len(self.base.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            self._add(inner if inner in self.known else base, node.lineno)
            if base == "os" and alias.name in {"environ", "getenv"}:
                self.environment.append(node.lineno)

    def visit_Call(self, node):
        called = ast.unparse(node.func).rpartition(".")[2]
        if called in {"import_module", "__import__"} and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                self._add(first.value, node.lineno)
        self.generic_visit(node)

    def visit_Attribute(self, node):
        if ast.unparse(node) in {"os.environ", "os.getenv", "os.environb"}:
            self.environment.append(node.lineno)
        self.generic_visit(node)

    def visit_FunctionDef(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef  # noqa: N815

    def visit_If(self, node):
        if ast.unparse(node.test).rpartition(".")[2] != "TYPE_CHECKING":
            self.generic_visit(node)
            return
        self.types += 1
        for child in node.body:
            self.visit(child)
        self.types -= 1
        for child in node.orelse:
            self.visit(child)


def _visit(tree: dict[str, Path]) -> list[_Visitor]:
    visitors = []
    for name, path in tree.items():
        visitor = _Visitor(name, set(tree), package=path.name == "__init__.py")
        visitor.visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
        visitors.append(visitor)
    return visitors


def _inside(name: str, places: tuple[str, ...] | str) -> bool:
    """Whether a module is one of some places or lies in one."""
    places = (places,) if isinstance(places, str) else places
    return any(name == place or name.startswith(f"{place}.") for place in places)


def _place(name: str, places: tuple[str, ...]) -> str | None:
    return next((place for place in places if _inside(name, place)), None)


def _edge(made: Import) -> str | None:
    """Return which rule an import between our own modules breaks, if any."""
    package = made.source.split(".")[0]
    if _inside(made.source, FRONT_DOOR):
        return None
    if not _inside(made.target, ALLOWED[package]):
        return f"{package} may import {', '.join(ALLOWED[package])}"
    if _inside(made.target, FRONT_DOOR):
        return "nobody imports the front door"
    if _inside(made.target, TEST_KIT) and not _inside(made.source, TEST_KIT):
        return f"only tests import {TEST_KIT}"
    home, away = _place(made.source, SCIENCE), _place(made.target, SCIENCE)
    if package == "jobs" and away and away != home and not _inside(made.source, ASSEMBLY):
        return f"{home or 'the root of jobs'} does not import {away}"
    return None


def _door(made: Import) -> str | None:
    """Return which door an import of a library does not go through, if any."""
    library = made.target.split(".")[0]
    if library not in DOORS or _inside(made.source, DOORS[library]):
        return None
    return f"the door to {library} is {' and '.join(DOORS[library])}"


def cycles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """Yield one cycle for each knot of modules that import one another."""
    state: dict[str, int] = {}
    path: list[str] = []

    def walk(name: str) -> Iterator[list[str]]:
        state[name] = 1
        path.append(name)
        for target in sorted(edges.get(name, ())):
            if state.get(target) == 1:
                yield [*path[path.index(target) :], target]
            elif target not in state:
                yield from walk(target)
        path.pop()
        state[name] = 2

    for name in sorted(edges):
        if name not in state:
            yield from walk(name)


def _closure(name: str, visitors: dict[str, _Visitor]) -> dict[str, str]:
    """Return all that importing a module imports at once, each with the module that does so."""
    reached: dict[str, str] = {}
    frontier = [(name, "")]
    while frontier:
        here, why = frontier.pop()
        parts = here.split(".")
        for depth in range(1, len(parts) + 1):  # importing a.b.c runs a and a.b first
            step = ".".join(parts[:depth])
            if step in reached:
                continue
            reached[step] = why
            if step in visitors:
                found = [made for made in visitors[step].imports if made.eager]
                frontier += [(made.target, f"{step}:{made.line}") for made in found]
    return reached


def problems(root: Path) -> list[str]:
    """Return every breach of the rules in a tree, with file and line."""
    tree = modules(root)
    visitors = {visitor.name: visitor for visitor in _visit(tree)}
    found: list[str] = []
    edges: dict[str, set[str]] = {}
    for visitor in visitors.values():
        for made in visitor.imports:
            ours = made.target.split(".")[0] in PACKAGES
            if ours and made.target in tree and made.target != made.source:
                edges.setdefault(made.source, set()).add(made.target)
            if broken := _edge(made) if ours else _door(made):
                found.append(f"{made.source}:{made.line} imports {made.target}: {broken}")
        if not _inside(visitor.name, ENVIRONMENT):
            found += [
                f"{visitor.name}:{line} reads the environment" for line in visitor.environment
            ]
    found += [f"cycle: {' → '.join(cycle)}" for cycle in cycles(edges)]
    for name in tree:
        if _inside(name, LIGHT):
            reached = _closure(name, visitors)
            found += [
                f"importing {name} imports {heavy} at once, at {reached[heavy]}"
                for heavy in HEAVY
                if heavy in reached
            ]
    return found


def _installed() -> Path:
    spec = importlib.util.find_spec("store")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


def test_the_layers_hold():
    tree = modules(_installed())
    assert {name for name in tree if "." not in name} == set(PACKAGES)
    found = problems(_installed())
    assert not found, "\n".join(found)


BAD = {
    "store imports ingest": ({"store/a.py": "import ingest.plan"}, "store may import store"),
    "store imports jobs, lazily": (
        {"store/a.py": "def f():\n    from jobs.feed import Feed"},
        "store.a:2 imports jobs.feed: store may import store",
    ),
    "ingest imports jobs, for types": (
        {"ingest/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import jobs.feed"},
        "ingest.a:3 imports jobs.feed: ingest may import ingest, store",
    ),
    "jobs imports another part of ingest": (
        {"jobs/a.py": "from ingest.plan import Plan"},
        "jobs may import jobs, store, ingest.models, ingest.contract",
    ),
    "jobs imports ingest's root": ({"jobs/a.py": "from ingest import run"}, "jobs may import"),
    "a module that only begins alike": (
        {"jobs/a.py": "import ingest.models_of_mine"},
        "jobs may import",
    ),
    "two sciences": (
        {"jobs/features/a.py": "from jobs.dictionaries.train import train"},
        "jobs.features does not import jobs.dictionaries",
    ),
    "the root imports a science": (
        {"jobs/feed.py": "import jobs.kernels.ops"},
        "the root of jobs does not import jobs.kernels",
    ),
    "somebody imports the front door": (
        {"jobs/feed.py": "from jobs import cli", "jobs/cli.py": ""},
        "nobody imports the front door",
    ),
    "code imports the test kit": (
        {"store/a.py": "from store.testing import faults"},
        "only tests import store.testing",
    ),
    "a relative import": (
        {"jobs/features/a.py": "from ..export import b"},
        "jobs.features does not import jobs.export",
    ),
    "an import by name": (
        {"store/a.py": "import importlib\nimportlib.import_module('jobs.feed')"},
        "store.a:2 imports jobs.feed",
    ),
    "a door used elsewhere": (
        {"jobs/feed.py": "def f():\n    import pyarrow.parquet as pq"},
        "the door to pyarrow is store.tables and store.conditions and ingest.sources",
    ),
    "torch in store": (
        {"store/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"},
        "the door to torch is ingest and jobs",
    ),
    "the environment": ({"jobs/feed.py": "import os\nx = os.environ['X']"}, "jobs.feed:2 reads"),
    "the environment by name": ({"store/a.py": "from os import getenv"}, "store.a:1 reads"),
    "a cycle of lazy imports": (
        {"store/a.py": "def f():\n    import store.b", "store/b.py": "import store.c",
         "store/c.py": "from store import a"},
        "cycle: store.a → store.b → store.c → store.a",
    ),
    "a heavy library at import": (
        {"store/codecs/__init__.py": "", "store/codecs/a.py": "import zarr"},
        "importing store.codecs.a imports zarr at once, at store.codecs.a:1",
    ),
    "a heavy library two steps away": (
        {"jobs/codebook.py": "import jobs.progress", "jobs/progress.py": "import rich"},
        "importing jobs.codebook imports rich at once, at jobs.progress:1",
    ),
    "a heavy library in a parent's __init__": (
        {"jobs/kernels/a.py": "", "jobs/kernels/__init__.py": "import jobs.config",
         "jobs/config.py": "import tyro"},
        "importing jobs.kernels.a imports tyro at once",
    ),
}  # fmt: skip

GOOD = {
    "store/tables.py": "import pyarrow",
    "store/frames.py": "def f():\n    import polars",
    "store/codecs/a.py": "def f():\n    import zarr",
    "store/reader.py": "from store import tables",
    "store/testing/__init__.py": "import store.tables",
    "ingest/run.py": "import store.tables\nimport torch",
    "ingest/models/bert.py": "import transformers",
    "jobs/feed.py": "import ingest.models.bert\nfrom ingest.contract import Runtime",
    "ingest/contract.py": "",
    "jobs/dictionaries/a.py": "import jobs.feed",
    "jobs/config.py": "import jobs.dictionaries.a",
    "jobs/cli.py": "import os\nimport ingest.run\nimport jobs.dictionaries.a\nos.environ",
    "jobs/report/plots.py": "import matplotlib",
}


def _write(root: Path, files: dict[str, str]) -> Path:
    for package in PACKAGES:
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text("")
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("files", "said"), BAD.values(), ids=list(BAD))
def test_a_bad_tree_is_caught(tmp_path, files, said):
    found = problems(_write(tmp_path, files))
    assert any(said in problem for problem in found), found


def test_a_good_tree_is_not(tmp_path):
    assert problems(_write(tmp_path, GOOD)) == []


IMPORT_WITHOUT = """
import importlib, importlib.util, sys
for name in {heavy!r}:
    sys.modules[name] = None
for name in {light!r}:
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
for name in {heavy!r}:
    assert sys.modules[name] is None
assert {light!r} != ("store",) or "torch" not in sys.modules
"""


@pytest.mark.parametrize("light", [("store",), LIGHT], ids=["store", "all"])
def test_light_parts_import_where_heavy_libraries_lack(light):
    code = IMPORT_WITHOUT.format(heavy=HEAVY, light=light)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
