import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import store
from store import CorruptError, InvalidInputError
from store.assets import ANY_STORE
from store.records import make_record
from store.testing.faults import flip, overwrite
from store.testing.strategies import names

FILES = {"dictionary.json": b"{}", "weights.safetensors": bytes(range(256)), "empty": b""}


@given(st.dictionaries(names().filter(lambda n: n != "manifest.json"), st.binary(max_size=50)))
@settings(max_examples=20)
def test_assets_come_back_under_an_id_of_their_contents(memory_url, files):
    made = store.create(memory_url())
    asset = made.put_asset(files)
    assert made.asset(asset) == files
    assert made.put_asset(dict(reversed(files.items()))) == asset
    assert made.put_asset({**files, "one-more": b"x"}) != asset


@pytest.mark.parametrize("name", ["manifest.json", "../x", "a/b", ".hidden", ""])
def test_names_that_would_break_an_asset_are_refused(url, name):
    made = store.create(url)
    with pytest.raises(InvalidInputError) as caught:
        made.put_asset({name: b"x"})
    assert caught.value.kind == "bad-name"
    assert list(made.view.storage.keys("assets")) == []


@pytest.mark.parametrize("damage", ["flip", "delete", "truncate", "swap"])
def test_a_damaged_asset_is_refused(url, damage):
    made = store.create(url)
    asset = made.put_asset(FILES)
    key = f"assets/{asset}/weights.safetensors"
    data = {
        "flip": flip(FILES["weights.safetensors"], 9),
        "delete": None,
        "truncate": b"short",
        "swap": FILES["dictionary.json"],
    }
    overwrite(made.view.storage, key, data[damage])
    with pytest.raises(CorruptError, match=r"weights\.safetensors") as caught:
        made.asset(asset)
    assert caught.value.kind == "asset-damaged"


def test_a_manifest_under_another_id_is_refused(url):
    made = store.create(url)
    one, other = made.put_asset({"a": b"1"}), made.put_asset({})
    storage = made.view.storage
    overwrite(storage, f"assets/{one}/manifest.json", storage.get(f"assets/{other}/manifest.json"))
    with pytest.raises(CorruptError) as caught:
        made.asset(one)
    assert caught.value.kind == "foreign-record"


def test_an_asset_half_written_is_absent_and_completed_by_writing_it_again(url):
    made = store.create(url)
    asset = made.put_asset(FILES)
    for name in ("manifest.json", "weights.safetensors"):
        overwrite(made.view.storage, f"assets/{asset}/{name}", None)
    with pytest.raises(store.NotFoundError) as caught:
        made.asset(asset)
    assert caught.value.kind == "asset-missing"
    assert made.put_asset(FILES) == asset
    assert made.asset(asset) == FILES


@pytest.mark.parametrize(
    "entry", [7, [], ["1", "x"], [1, 2], [True, "x"], [-1, "x"], [1 << 40, "x"]]
)
def test_a_manifest_that_lists_what_cannot_be_is_damage(url, entry):
    made = store.create(url)
    data, asset = make_record("asset", ANY_STORE, {"files": {"a": entry}})
    made.view.storage.create(f"assets/{asset}/manifest.json", data)
    with pytest.raises(CorruptError, match=r"asset-damaged.*/a") as caught:
        made.asset(asset)
    assert caught.value.kind == "asset-damaged"
