"""Every branch of the protocol is taken by a test: ``pip install coverage; pytest -m loops tests/store/test_branches.py``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import store

TESTS = Path(__file__).parent
PACKAGE = Path(store.__file__).parent
PROTOCOL = [
    "assets.py",
    "attempts.py",
    "commits.py",
    "conditions.py",
    "coverage.py",
    "groups.py",
    "layout.py",
    "maintenance.py",
    "memory.py",
    "object_store.py",
    "objects.py",
    "open_part.py",
    "opening.py",
    "order.py",
    "parquet_bounds.py",
    "partials.py",
    "pins.py",
    "posix.py",
    "purge.py",
    "reader.py",
    "records.py",
    "rows.py",
    "schema.py",
    "shard_reader.py",
    "shards.py",
    "storage.py",
    "system.py",
    "tables.py",
    "tokens.py",
    "tombstones.py",
    "urls.py",
    "values.py",
    "verify.py",
    "view.py",
    "windows.py",
    "writer.py",
]
"""What decides which bytes are durable, visible, whole and right. What is left out is looked at, too, and told."""
SETTINGS = """
[run]
branch = True
source = store
[report]
exclude_also =
    if TYPE_CHECKING:
    class .*\\(Protocol\\):
    raise AssertionError$
"""


@pytest.mark.loops
@pytest.mark.timeout(7200)
def test_every_branch_of_the_protocol_is_taken(tmp_path, capsys):
    pytest.importorskip("coverage")
    (tmp_path / "rc").write_text(SETTINGS)

    def coverage(*words):
        command = [sys.executable, "-m", "coverage", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for words in (
        [str(TESTS)],
        ["-m", "slow", str(TESTS / "test_object_store.py"), str(TESTS / "test_storage.py")],
    ):
        options = ["-p", "no:cacheprovider", f"--rootdir={TESTS.parents[1]}"]
        options += ["-c", str(TESTS.parents[1] / "pyproject.toml")]
        done = coverage("run", "--append", "--rcfile=rc", "-m", "pytest", "-q", *options, *words)
        assert done.returncode == 0, done.stdout[-3000:]
    coverage("json", "--rcfile=rc", "-o", "found.json")
    files = json.loads((tmp_path / "found.json").read_text())["files"]
    missing, others = {}, {}
    for name, found in files.items():
        path = (tmp_path / name).resolve()
        if path.is_relative_to(PACKAGE / "testing"):
            continue
        left = [*found["missing_lines"], *found["missing_branches"]]
        place = missing if path.parent == PACKAGE and path.name in PROTOCOL else others
        if left:
            place[path.name] = left
    with capsys.disabled():
        sys.stdout.write(f"\nbeside the protocol: {others}\n")
    assert missing == {}
