"""The protocol with one line of it wrong: each time a named test must fail, or that line is held by nothing."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

import store

TESTS = Path(__file__).resolve().parent
PACKAGE = Path(store.__file__).parent


@dataclass(frozen=True)
class Mutation:
    """What a file says, what it says instead, and the test that knows."""

    name: str
    file: str
    says: str
    instead: str
    test: str


MUTATIONS = [
    Mutation(
        "the record is created before what it names is durable",
        "posix.py",
        "            self._system.fdatasync(self._fd)\n            try:",
        "            try:",
        "test_power.py",
    ),
    Mutation(
        "the folder of a new name is not synced",
        "posix.py",
        "            self._close()\n            self._storage.sync_folder(self._path.parent)\n",
        "            self._close()\n",
        "test_power.py",
    ),
    Mutation(
        "the folders above a new name are not synced",
        "posix.py",
        "            self._sync_names(path.parent, made)\n",
        "            pass\n",
        "test_power.py",
    ),
    Mutation(
        "a taken record is not made durable for who lost",
        "posix.py",
        "                self.sync_folder(self.local_path(key).parent)\n            return False",
        "                pass\n            return False",
        "test_storage.py",
    ),
    Mutation(
        "a record is overwritten instead of created",
        "posix.py",
        "self._system.link(self._temporary, self._path)",
        "os.rename(self._temporary, self._path)",
        "test_storage.py",
    ),
    Mutation(
        "a lost answer to a link is a failure",
        "posix.py",
        "landed = self._system.fstat(self._fd).st_nlink == 2",
        "landed = False",
        "test_storage.py",
    ),
    Mutation(
        "who lost the race is not read back",
        "attempts.py",
        "        winner = self._recorded()\n        if winner.attempt != self.id:\n"
        "            self.drop()\n        return winner",
        "        return Commit.from_record({**body, 'self': digest}, key)",
        "test_commits.py",
    ),
    Mutation(
        "who lost the race leaves its files",
        "attempts.py",
        "        if winner.attempt != self.id:\n            self.drop()\n",
        "",
        "test_commits.py",
    ),
    Mutation(
        "what may be named by a record is deleted",
        "attempts.py",
        "if not (self._unsure or (self._offered and self._named())):",
        "if True:",
        "test_commits.py",
    ),
    Mutation(
        "the answer to a create was lost, and that is a failure",
        "attempts.py",
        "            if not self._named():\n                raise\n",
        "            raise\n",
        "test_commits.py",
    ),
    Mutation(
        "a record names objects that gc took meanwhile",
        "attempts.py",
        "        self._check_kept()\n",
        "",
        "test_interleavings.py",
    ),
    Mutation(
        "an object may lie outside its attempt",
        "commits.py",
        '    layout.check_object_path(entry["path"])\n    return Item',
        "    return Item",
        "test_view.py",
    ),
    Mutation(
        "a commit of another place is taken",
        "commits.py",
        "        if layout.commit_key(commit.group, commit.part, commit.n) != where:",
        "        if False:",
        "test_view.py",
    ),
    Mutation(
        "a commit of another recipe is taken",
        "commits.py",
        "    if commit.recipe != group.recipe_hash:",
        "    if False:",
        "test_view.py",
    ),
    Mutation(
        "an earlier commit of a part is read",
        "commits.py",
        "        if n >= parts.get(part, 0):",
        "        if part not in parts:",
        "test_purge.py",
    ),
    Mutation(
        "a record is not held against its own sha256",
        "records.py",
        'sha256(_without_self(data, record)) == record["self"]',
        "True",
        "test_schema.py",
    ),
    Mutation(
        "a record of another store is taken",
        "records.py",
        '(store_id is not None and record.get("store") != store_id)',
        "False",
        "test_schema.py",
    ),
    Mutation(
        "a key that only a newer version knows is ignored",
        "records.py",
        '    if unknown := sorted(set(record) - set(_FIELDS[record["kind"]]) - _HEAD):',
        "    if unknown := []:",
        "test_schema.py",
    ),
    Mutation(
        "the identity slot of a shard is not looked at",
        "shard_reader.py",
        "if bytes(slot) != identity_slot(self._who):",
        "if False:",
        "test_shards.py",
    ),
    Mutation(
        "the index of a shard is not held against its crc32c",
        "shard_reader.py",
        'if crc32c(tail[:-4]) != int.from_bytes(tail[-4:].tobytes(), "little"):',
        "if False:",
        "test_shards.py",
    ),
    Mutation(
        "chunks that overlap are read as neighbours",
        "shard_reader.py",
        "not 0 <= where[at + 1][0] - sum(where[at]) < ALIGN:",
        "not where[at + 1][0] - sum(where[at]) < ALIGN:",
        "test_shards.py",
    ),
    Mutation(
        "a damaged chunk is told as another",
        "shard_reader.py",
        "                                self._check(chunk, coded)",
        "                                self._check(some[0], coded)",
        "test_shards.py",
    ),
    Mutation(
        "damaged rows are filled with zeros",
        "shard_reader.py",
        '            raise self._damage("chunk-damaged", "does not fit its crc32c", chunk)',
        "            coded[:] = 0",
        "test_shards.py",
    ),
    Mutation(
        "a missing shard is filled with zeros",
        "shard_reader.py",
        'raise self._gone() or self._damage("object-missing", "is not there") from error',
        "pass",
        "test_verify.py",
    ),
    Mutation(
        "a table is not held against its crc32c",
        "objects.py",
        'if f"{crc32c(data):08x}" != item.crc32c:',
        "if False:",
        "test_verify.py",
    ),
    Mutation(
        "a commit made from other tokens is taken",
        "view.py",
        "if commit.tokens != tokens.hash and not self.objects.was_replaced(tokens):",
        "if False:",
        "test_view.py",
    ),
    Mutation(
        "a reader from before a removal takes empty slots for rows",
        "view.py",
        "if commit.tokens != tokens.hash or not set(commit.without) <= set(self.tombstones):",
        "if False:",
        "test_purge_races.py",
    ),
    Mutation(
        "a part a purge has not reached is read",
        "view.py",
        "if commit.tokens in self.earlier_tokens(commit.part):",
        "if False:",
        "test_purge_faults.py",
    ),
    Mutation(
        "a pin takes whatever commit is there",
        "view.py",
        "            if commit.hash != want:",
        "            if False:",
        "test_view.py",
    ),
    Mutation(
        "a gap that a seal counts is passed over",
        "coverage.py",
        "        if not exists(storage, layout.commit_key(name, part)):",
        "        if False:",
        "test_view.py",
    ),
    Mutation(
        "a pin is not held against its id",
        "pins.py",
        "    if pin_id(entries, tombstones) != pin:",
        "    if False:",
        "test_view.py",
    ),
    Mutation(
        "a tombstone is not held against its name",
        "tombstones.py",
        "    if sha256(data) == tombstone:",
        "    if True:",
        "test_purge.py",
    ),
    Mutation(
        "another recipe joins a group",
        "groups.py",
        "    if canonical(held.to_json()) != canonical(group.to_json()):",
        "    if False:",
        "test_commits.py",
    ),
    Mutation(
        "a dropped name is used again",
        "groups.py",
        "    if exists(storage, layout.dropped_key(group.name)):",
        "    if False:",
        "test_maintenance.py",
    ),
    Mutation(
        "gc does not wait for writers",
        "maintenance.py",
        "if touched is None or now - touched < grace_seconds:",
        "if touched is None:",
        "test_maintenance.py",
    ),
    Mutation(
        "gc takes what a record names",
        "maintenance.py",
        "            if attempt not in named:",
        "            if True:",
        "test_maintenance.py",
    ),
    Mutation(
        "gc goes by a clock that is off",
        "maintenance.py",
        "    if abs(there - clock()) > MOST_SKEW_SECONDS:",
        "    if False:",
        "test_maintenance.py",
    ),
    Mutation(
        "a purge deletes before it has looked at what it wrote",
        "purge.py",
        "            check=lambda new: _check_same(view, old, new),\n",
        "",
        "test_purge_races.py",
    ),
]


def run(package, tests):
    """Run tests over a copy of the package; return the exit code and what they print."""
    code = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={TESTS.parents[1]}"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *options, *(str(TESTS / test) for test in tests)],
        cwd=package.parent,  # where ``-c`` imports from first
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    return done.returncode, done.stdout + done.stderr


def copied(folder):
    """A copy of the package to be changed."""
    ignored = shutil.ignore_patterns("__pycache__")
    return Path(shutil.copytree(PACKAGE, folder / "store", ignore=ignored))


def survived(folder, mutation):
    """Return what there is to say of a mutation that its test does not catch; else nothing."""
    package = copied(folder)
    file = package / mutation.file
    file.write_text(file.read_text().replace(mutation.says, mutation.instead))
    code, said = run(package, [mutation.test])
    shutil.rmtree(folder)
    caught = code == 1 and ("1 failed" in said or "FAILED" in said)
    return "" if caught else f"{mutation.test} passes where {mutation.name}: {said[-1000:]}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_what_is_to_be_changed_is_there_once(mutation):
    assert (PACKAGE / mutation.file).read_text().count(mutation.says) == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_wrong_line_makes_its_test_fail_and_without_one_they_pass(tmp_path):
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        package = copied(tmp_path / "unchanged")
        tests = sorted({mutation.test for mutation in MUTATIONS})
        plain = pool.map(lambda test: run(package, [test]), tests)
        folders = [tmp_path / str(number) for number in range(len(MUTATIONS))]
        found = list(pool.map(survived, folders, MUTATIONS))
    assert [said[-3000:] for code, said in plain if code] == []
    assert [one for one in found if one] == []
