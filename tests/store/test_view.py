"""What a view shows: pins, seals, reserved keys, stores that grow meanwhile."""

import numpy as np
import pytest

import store
from store import CorruptError, NotFoundError, UnsupportedVersionError, layout
from store.commits import load_commit
from store.records import make_record, read_record
from store.testing.faults import overwrite
from store.testing.small import LENGTHS, fill, tokens_store

RECIPE = {"source": "small", "lengths": list(LENGTHS)}


def put_record(made, key, kind, body):
    data, _ = make_record(kind, made.id, body)
    overwrite(made.view.storage, key, data)


def grow(made, rows=100):
    with made.writer("tokens", recipe=RECIPE) as writer:
        writer.put([store.TokenSequence(token_ids=np.arange(rows))], position="later")
        writer.flush()


@pytest.fixture
def growing(memory_url):
    """An unsealed store with a group over all its parts."""
    return fill(tokens_store(memory_url(), seal=False), "acts", {"h": "float32[16]", "y": "int8"})


def test_a_pin_sees_exactly_what_it_lists(growing):
    pin = growing.pin(["acts"])
    assert pin == growing.pin_id(["acts"]) == growing.pin(["acts"])
    before = growing.read("h")
    fill(growing, "later", {"z": "int8"})
    grow(growing)
    pinned, live = store.open(growing.url, pin=pin), store.open(growing.url)
    assert list(pinned.groups) == ["tokens", "acts"]
    assert np.array_equal(pinned.read("h"), before)
    assert len(live.row_ids()) == len(pinned.row_ids()) + 100
    assert pinned.pin_id() == pin
    assert pinned.refresh().view.parts("tokens") == growing.view.parts("tokens")
    with pytest.raises(NotFoundError) as caught:
        pinned.read("later:z")
    assert caught.value.kind == "group-missing"


def test_pins_of_different_things_differ_and_of_equal_things_are_one(growing):
    pins = {growing.pin(), growing.pin(["tokens"]), growing.pin(["acts"])}
    assert len(pins) == 2  # all there is, is tokens and acts


def test_long_pins_lie_in_segments(growing, monkeypatch):
    pin = growing.pin_id()
    monkeypatch.setattr("store.pins._INLINE_ENTRIES", 3)
    assert growing.pin() == pin
    segments = list(growing.view.storage.keys("segments"))
    assert len(segments) == -(-2 * len(growing.view.parts("tokens")) // 3)
    assert np.array_equal(store.open(growing.url, pin=pin).read("h"), growing.read("h"))
    overwrite(growing.view.storage, segments[0], b"PAR1 nonsense")
    with pytest.raises(CorruptError):
        store.open(growing.url, pin=pin)
    assert not store.verify(growing).ok


def replace_commit(made, group, part, changes):
    """Write n = 1 of a part, as a purge would."""
    held = made.view.commit(group, part)
    record = {
        "group": group,
        "part": part,
        "n": 1,
        "attempt": held.attempt,
        "rows": held.rows,
        "recipe": held.recipe,
        "tokens": held.tokens,
        "objects": [
            {"path": i.path, "size": i.size, "crc32c": i.crc32c, "rows": i.rows}
            for i in held.objects.values()
        ],
        "summary": held.summary,
        "provenance": {},
        "replaces": held.hash,
        "reason": "asked to",
        **changes,
    }
    put_record(made, layout.commit_key(group, part, 1), "commit", record)


def other_commit(made, group, part):
    """Put another commit, valid in itself, where one lies."""
    key = layout.commit_key(group, part)
    held = read_record(made.view.storage.get(key), "commit", made.id, key)
    body = {name: held[name] for name in held if name not in {"v", "kind", "store", "self"}}
    put_record(made, key, "commit", {**body, "provenance": {"second": "time"}})


GONE = {
    "another-now": lambda s: other_commit(s, "acts", 1),
    "record-deleted": lambda s: overwrite(s.view.storage, layout.commit_key("acts", 1), None),
    "purged": lambda s: replace_commit(s, "acts", 1, {}),
    "retired": lambda s: put_record(
        s,
        "groups/acts/retired/00000001.json",
        "retired",
        {"group": "acts", "part": 1, "reason": ""},
    ),
    "tokens-retired": lambda s: put_record(
        s,
        "groups/tokens/retired/00000001.json",
        "retired",
        {"group": "acts", "part": 1, "reason": ""},
    ),
    "dropped": lambda s: put_record(
        s, "groups/acts/dropped.json", "dropped", {"group": "acts", "reason": ""}
    ),
}


@pytest.mark.parametrize("change", GONE.values(), ids=GONE)
def test_what_a_pin_saw_and_is_gone_is_reported_as_purged(growing, change):
    pin = growing.pin()
    before = growing.read("h", slice(0, 300))
    change(growing)
    pinned = store.open(growing.url, pin=pin)
    with pytest.raises(NotFoundError, match=f"pin {pin}") as caught:
        pinned.read("acts:h")
    assert caught.value.kind == "purged"
    if "acts" in pinned.groups:
        assert np.array_equal(pinned.gather("acts:h", np.arange(300)), before)


def test_live_readers_take_the_highest_commit(growing):
    replace_commit(growing, "acts", 1, {"provenance": {"second": "time"}})
    live = growing.refresh()
    assert live.view.commit("acts", 1).n == 1
    assert np.array_equal(live.read("h"), growing.read("h"))
    assert live.pin_id() != growing.pin_id()


def test_a_commit_of_other_tokens_is_refused(growing):
    replace_commit(growing, "tokens", 1, {"provenance": {"second": "time"}})
    live = growing.refresh()
    with pytest.raises(store.StoreError) as caught:
        live.read("h")
    assert caught.value.kind == "tokens-mismatch"
    assert len(live.row_ids()) == sum(LENGTHS)


def test_a_dropped_group_does_not_exist_and_its_name_is_never_used_again(growing):
    GONE["dropped"](growing)
    live = growing.refresh()
    assert list(live.groups) == ["tokens"]
    with pytest.raises(store.ConflictError, match="dropped") as caught:
        live.writer("acts", columns={"h": "float32[16]", "y": "int8"}, recipe={})
    assert caught.value.kind == "group-dropped"
    assert store.verify(live).ok


@pytest.mark.parametrize(("change", "tokens"), [("retired", 4), ("tokens-retired", 3)])
def test_retired_parts_are_left_out(growing, change, tokens):
    parts = list(growing.view.parts("tokens"))
    assert parts == [0, 1, 2, 3]
    GONE[change](growing)
    live = growing.refresh()
    assert list(live.view.parts("acts")) == [0, 2, 3]
    assert len(live.view.parts("tokens")) == tokens
    assert not (live.row_ids(group="acts") // live.part_stride == 1).any()
    assert store.verify(live).ok
    windows = live.windows(["h"], seed=0)
    assert np.array_equal(
        np.sort(np.concatenate([w.row_ids for w in windows])), live.row_ids(group="acts")
    )


def test_failed_attempts_are_listed_and_change_nothing(growing):
    key = layout.failed_key("acts", 1, "0" * 16)
    body = {"group": "acts", "part": 1, "attempt": "0" * 16, "error": "out of memory"}
    put_record(growing, key, "failed", body)
    report = store.verify(growing)
    assert report.ok
    assert report.failed_parts == [key]
    assert np.array_equal(growing.refresh().read("h"), growing.read("h"))


def test_a_reader_that_does_not_know_how_documents_were_removed_refuses_the_store(growing):
    overwrite(growing.view.storage, "tombstones/all.parquet", b"PAR1")
    with pytest.raises(UnsupportedVersionError, match="tombstones"):
        store.open(growing.url)


def test_a_missing_tokens_record_is_an_error_not_a_shorter_store(growing):
    overwrite(growing.view.storage, layout.commit_key("tokens", 1), None)
    live = growing.refresh()
    for call in (
        lambda: live.row_ids(),
        lambda: live.read("h"),
        lambda: live.windows(["h"], seed=0),
    ):
        with pytest.raises(CorruptError, match="part 1 of group 'tokens'") as caught:
            call()
        assert caught.value.kind == "part-missing"
    assert store.verify(live).problems[0]["kind"] == "part-missing"


@pytest.mark.parametrize("part", [0, 2, 3])
@pytest.mark.parametrize("group", ["tokens", "acts"])
def test_a_missing_record_of_a_sealed_group_is_an_error(memory_url, group, part):
    made = fill(tokens_store(memory_url()), "acts", {"h": "float32[16]"})
    overwrite(made.view.storage, layout.commit_key(group, part), None)
    with pytest.raises(CorruptError) as caught:
        made.refresh().read("h")
    assert caught.value.kind == "part-missing"
    assert not store.verify(made).ok


def test_a_missing_record_of_an_unsealed_group_is_a_part_not_yet_written(growing):
    overwrite(growing.view.storage, layout.commit_key("acts", 1), None)
    live = growing.refresh()
    assert list(live.view.parts("acts")) == [0, 2, 3]
    assert not live.coverage["acts"].complete


def test_commits_behind_the_seal_are_ignored_and_reported(memory_url):
    made = tokens_store(memory_url(), LENGTHS[:3], seal=False)
    grow_to = made.writer("tokens", recipe={"source": "small", "lengths": list(LENGTHS[:3])})
    made.view.storage.create(
        layout.sealed_key("tokens"),
        make_record("sealed", made.id, {"group": "tokens", "parts": 1, "rows": 440})[0],
    )
    assert len(grow_to.committed) == 1
    grow_to._pending, grow_to._pending_rows = [store.TokenSequence(token_ids=[1])], 1
    grow_to.flush()
    live = made.refresh()
    assert len(live.row_ids()) == 440
    assert [p["kind"] for p in store.verify(live).problems] == ["beyond-seal"]


def test_a_view_of_a_growing_store_stays_of_one_piece(growing):
    live = growing.refresh()
    rows = len(live.row_ids())  # the tokens' parts are listed now
    grow(growing)
    with growing.writer("acts", columns={"h": "float32[16]", "y": "int8"}, recipe={"by": "small", "seed": 0}) as w:  # fmt: skip
        ids = growing.refresh().row_ids()[-100:]
        w.put(ids, {"h": np.ones((100, 16)), "y": np.ones(100, np.int8)})
    assert len(live.read("h")) == rows
    assert len(live.refresh().read("h")) == rows + 100


def test_a_listing_that_missed_a_record_made_meanwhile_is_looked_at_again(growing, monkeypatch):
    storage = growing.view.storage
    keys = type(storage).keys
    hidden = layout.commit_key("tokens", 1)
    monkeypatch.setattr(
        type(storage), "keys", lambda self, prefix: (k for k in keys(self, prefix) if k != hidden)
    )
    assert len(growing.refresh().row_ids()) == sum(LENGTHS)


HOSTILE = {
    "attempt-up": ({"attempt": "../../../../etc"}, "record-invalid"),
    "attempt-absolute": ({"attempt": "/etc"}, "record-invalid"),
    "attempt-upper": ({"attempt": "A" * 16}, "record-invalid"),
    "path-up": ({"objects": [["../x", 1, "0" * 8, 1]]}, "bad-path"),
    "path-absolute": ({"objects": [["/etc/passwd", 1, "0" * 8, 1]]}, "bad-path"),
    "size-negative": ({"objects": [["a", -1, "0" * 8, 1]]}, "record-invalid"),
    "size-text": ({"objects": [["a", "1", "0" * 8, 1]]}, "record-invalid"),
    "crc": ({"objects": [["a", 1, "zz", 1]]}, "record-invalid"),
    "objects-numbers": ({"objects": [1, 2]}, "record-invalid"),
    "rows-zero": ({"rows": 0}, "record-invalid"),
    "rows-negative": ({"rows": -5}, "record-invalid"),
    "rows-huge": ({"rows": 2**62}, "record-invalid"),
    "other-part": ({"part": 3}, "foreign-record"),
    "other-group": ({"group": "tokens"}, "foreign-record"),
    "other-n": ({"n": 3}, "foreign-record"),
    "other-recipe": ({"recipe": "0" * 64}, "foreign-record"),
    "other-tokens": ({"tokens": "0" * 64}, "tokens-mismatch"),
    "no-tokens": ({"tokens": None}, "tokens-mismatch"),
    "no-objects": ({"objects": []}, "object-missing"),
}


@pytest.mark.parametrize(("changes", "kind"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_commit_with_all_hashes_right_is_refused(growing, changes, kind):
    objects = changes.get("objects")
    if objects and isinstance(objects[0], list):
        names = ("path", "size", "crc32c", "rows")
        changes = {"objects": [dict(zip(names, entry, strict=True)) for entry in objects]}
    replace_commit(growing, "acts", 1, changes)
    with pytest.raises(store.StoreError) as caught:
        growing.refresh().read("h")
    assert caught.value.kind == kind
    assert not store.verify(growing).ok


def test_records_under_another_groups_name_are_refused(memory_url):
    made = fill(tokens_store(memory_url()), "one", {"h": "float32[16]"})
    made = fill(made, "two", {"h": "float32[16]"})
    storage = made.view.storage
    sealed = storage.get("groups/one/sealed.json")
    overwrite(storage, "groups/two/sealed.json", sealed)
    with pytest.raises(CorruptError, match="seals group 'one'"):
        made.refresh().read("two:h")
    overwrite(storage, "groups/two/group.json", storage.get("groups/one/group.json"))
    with pytest.raises(CorruptError, match="declaration of group 'one'") as caught:
        made.refresh().read("two:h")
    assert caught.value.kind == "foreign-record"


@pytest.mark.parametrize(
    "column", [{"spec": "float4[16]", "codec": "raw"}, {"spec": "float32[16]", "codec": "new"}, {}]
)
def test_a_group_of_a_newer_version_is_refused_as_newer(growing, column):
    body = {"group": "acts", "columns": {"h": column}, "recipe": {}, "aligned_to": "tokens"}
    put_record(growing, layout.group_key("acts"), "group", body)
    with pytest.raises(UnsupportedVersionError, match="Upgrade"):
        store.open(growing.url).read("h")


@pytest.mark.parametrize("sizes", [(0, 0), (512, 0), (100, 300), (1024, 512), (-256, 512)])
def test_a_hostile_store_record_is_refused(memory_url, sizes):
    made = tokens_store(memory_url())
    body = {"part_rows": sizes[0], "part_stride": sizes[1], "probe": ""}
    put_record(made, "store.json", "store", body)
    with pytest.raises(CorruptError) as caught:
        store.open(made.url)
    assert caught.value.kind == "record-invalid"


def test_a_commit_read_from_its_key_is_the_one_written(growing):
    storage = growing.view.storage
    for part in growing.view.parts("acts"):
        commit = load_commit(storage, growing.id, "acts", part, 0)
        assert commit == growing.view.commit("acts", part)
        assert commit.tokens == growing.view.commit("tokens", part).hash
        assert set(commit.objects) == {"h/c/0/0", "h/zarr.json", "scalars.parquet"}


@pytest.mark.parametrize("stray", [".ipynb_checkpoints", "lost+found", "no group", "empty"])
def test_folders_of_other_programs_are_no_groups(tmp_path, stray):
    made = tokens_store(tmp_path / "s", [40])
    (tmp_path / "s/groups" / stray / "parts/00000000/x").mkdir(parents=True)
    (tmp_path / "s/assets" / stray).mkdir(parents=True)
    (tmp_path / "s/groups/tokens/parts/²").mkdir()
    live = store.open(tmp_path / "s")
    assert list(live.groups) == ["tokens"]
    assert store.verify(live).ok
    assert live.digest() == made.digest()


def test_a_hostile_seal_of_very_many_parts_is_refused_at_once(growing):
    put_record(
        growing,
        "groups/tokens/sealed.json",
        "sealed",
        {"group": "tokens", "parts": 10**18, "rows": 1},
    )
    with pytest.raises(CorruptError) as caught:
        growing.refresh().row_ids()
    assert caught.value.kind == "part-missing"


@pytest.mark.parametrize(
    "entries", [[1], [["acts"]], [[["acts"], 0, 0, "x"]], [["../x", 0, 0, "x"]]]
)
def test_a_hostile_pin_is_refused(growing, entries):
    body = {"pin": "0" * 64, "entries": entries, "segments": []}
    put_record(growing, f"pins/{'0' * 64}.json", "pin", body)
    with pytest.raises(CorruptError) as caught:
        store.open(growing.url, pin="0" * 64)
    assert caught.value.kind == "record-damaged"
    assert not store.verify(growing).ok


def test_a_group_named_twice_is_digested_once(growing):
    assert growing.digest(["acts", "acts"]) == growing.digest(["acts"])


def test_records_and_shards_that_are_not_kept_are_read_again(growing, monkeypatch):
    whole = growing.read("h")
    monkeypatch.setattr("store.view._KEPT_RECORDS", 1)
    monkeypatch.setattr("store.view._OPEN_SHARDS", 1)
    opened = growing.refresh()
    for _ in range(2):
        assert np.array_equal(opened.read("h"), whole)
    assert len(opened.view._stored) == len(opened.view._commits) == len(opened.view._shards) == 1


def test_a_pin_whose_segment_is_gone_is_damaged(growing, monkeypatch):
    monkeypatch.setattr("store.pins._INLINE_ENTRIES", 3)
    pin = growing.pin()
    storage = growing.view.storage
    storage.delete([next(iter(storage.keys("segments")))])
    with pytest.raises(CorruptError, match="is gone or does not fit"):
        store.open(growing.url, pin=pin)
