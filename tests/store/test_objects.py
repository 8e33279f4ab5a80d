"""Objects of commits that are not what their commits say, or not there any more for a reason."""

import pytest

import store
from store import CorruptError, NotFoundError, tables
from store.commits import load_commit
from store.maintenance import drop, retire
from store.testing.faults import overwrite
from store.testing.small import fill, tokens_store


@pytest.fixture
def made(memory_url):
    """Tokens and a group of scalars."""
    return fill(tokens_store(memory_url()), "acts", {"y": "int32", "h": "float32[16]"})


def objects(made, group):
    """Return what looks objects up, and the commit of the first part."""
    return made.view.objects, made.view.stored_commit(group, 0)


def test_a_path_no_commit_lists_is_missing(made):
    held, commit = objects(made, "acts")
    with pytest.raises(CorruptError, match=r"object-missing.*not listed"):
        held.check(commit, "other.parquet")


ENDED = {
    "retired": lambda made: retire(made, [0], "old", group="acts"),
    "tokens-retired": lambda made: retire(made, [0], "old"),
    "dropped": lambda made: drop(made, "acts", "a trial"),
}


@pytest.mark.parametrize("end", ENDED.values(), ids=ENDED)
@pytest.mark.parametrize("read", ["table", "shard"])
def test_what_was_ended_and_deleted_after_it_was_opened_is_purged_not_damaged(made, end, read):
    opened = made.refresh()
    commit = opened.view.commit("acts", 0)
    end(made)
    storage = made.view.storage
    storage.delete([commit.prefix + path for path in commit.objects])
    call = {
        "table": lambda: opened.view.table(commit, "scalars.parquet"),
        "shard": lambda: opened.view.shard(commit, opened.column("acts:h")),
    }[read]
    with pytest.raises(NotFoundError) as caught:
        call()
    assert caught.value.kind == "purged"
    assert "Open the store again" in str(caught.value)


def test_a_table_of_fewer_rows_than_its_commit_says_is_refused(made):
    held, commit = objects(made, "acts")
    key = commit.prefix + "scalars.parquet"
    data = tables.encode(tables.decode(made.view.storage.get(key)).slice(0, 5))
    overwrite(made.view.storage, key, data)
    item = commit.objects["scalars.parquet"]
    object.__setattr__(item, "size", len(data))
    object.__setattr__(item, "crc32c", f"{store.checksum.crc32c(data):08x}")
    with pytest.raises(CorruptError, match="holds 5 rows where"):
        held.stored_table(commit, "scalars.parquet")


def test_a_commit_is_the_same_however_it_is_asked_for(made):
    assert load_commit(made.view.storage, made.id, "acts", 0, 0) == objects(made, "acts")[1]
