"""Random damage to every kind of file: what is read is what was written, or an error; never anything else.

Three hundred damages here, ten thousand by hand: ``pytest -m loops tests/store/test_damage.py``.
"""

import random
import sys

import pytest

import store
from store.testing.faults import flip, plant
from store.testing.hostile import said
from store.urls import open_storage

KINDS = ("flip", "flips", "truncate", "grow", "empty", "zeros", "swap", "copy", "delete")


def damaged(objects, rng):
    """Return a store with one thing wrong, and what it is."""
    changed, key, kind = dict(objects), rng.choice(sorted(objects)), rng.choice(KINDS)
    data = changed[key]
    other = rng.choice(sorted(set(objects) - {key}))
    if kind == "flip" and data:
        changed[key] = flip(data, rng.randrange(len(data)), rng.randrange(8))
    elif kind == "flips" and data:
        for _ in range(rng.randrange(2, 40)):
            changed[key] = flip(changed[key], rng.randrange(len(data)), rng.randrange(8))
    elif kind == "truncate":
        changed[key] = data[: rng.randrange(len(data) + 1)]
    elif kind == "grow":
        changed[key] = data + rng.randbytes(rng.randrange(1, 5000))
    elif kind == "zeros" and data:
        at = rng.randrange(len(data))
        length = rng.randrange(1, 5000)
        changed[key] = data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
    elif kind == "swap":
        changed[key], changed[other] = changed[other], changed[key]
    elif kind == "copy":
        changed[key] = changed[other]
    elif kind == "delete":
        del changed[key]
    else:
        changed[key] = b""
    return changed, f"{kind} {key} ({other})"


def unseen(what):
    """Damage no reader could notice: a name that is not there may never have been.

    A whole group or an unsealed end that is gone cannot be told from one never written (``FORMAT.md`` 8), nor can a
    seal, a pin or an asset; their readers say that they are not there.
    """
    kind, key = what.split(" ")[:2]  # not the other file, which a deletion does not touch
    return kind == "delete" and any(
        name in key for name in ("group.json", "sealed.json", "pins/", "assets/")
    )


def check(objects, truth, seeds):
    silent = []
    for seed in seeds:
        changed, what = damaged(objects, random.Random(seed))
        if changed == objects:
            continue
        url = plant(f"memory://damage-{seed}", changed)
        found = said(open_storage(url))
        for name, value in found.items():
            if isinstance(value, str) or value == truth[name]:
                continue
            assert unseen(what), f"seed {seed}: {what} changed what {name} says"
        same = all(found.get(name) == value for name, value in truth.items())
        if same and store.verify(store.open(url)).ok:
            silent.append(what)
        store.memory.MemoryStorage._named.pop(f"damage-{seed}")
    return silent


@pytest.fixture(scope="module")
def truth(small_objects):
    found = said(open_storage(plant("memory://damage-truth", small_objects)))
    assert not [name for name, value in found.items() if isinstance(value, str)]
    return found


def test_no_damage_ever_changes_what_is_read(small_objects, truth):
    silent = check(small_objects, truth, range(300))
    assert [what for what in silent if not unseen(what)] == []


@pytest.mark.loops
@pytest.mark.timeout(7200)
def test_ten_thousand_damages_never_change_what_is_read(small_objects, truth, capsys):
    silent = check(small_objects, truth, range(10_000))
    with capsys.disabled():
        sys.stdout.write(f"\n10,000 damages, {len(silent)} of them unseen: {sorted(set(silent))}\n")
    assert [what for what in silent if not unseen(what)] == []
