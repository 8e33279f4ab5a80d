"""What fuzzing found worth keeping, run again; and blind changes of it. To look for more: ``tests/store/fuzz.py``."""

import random
from pathlib import Path

import pytest

from store.testing.fuzz import TARGETS, seeds

CORPUS = Path(__file__).parent / "fuzz_corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_ends_in_values_or_errors_of_ours(target):
    kept = sorted((CORPUS / target).iterdir())
    assert kept
    for path in kept:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", TARGETS)
def test_blind_changes_do_too(target):
    rng, start = random.Random(target), list(seeds(target))
    assert start
    for _ in range(60):
        data = bytearray(rng.choice(start))
        for _ in range(rng.randrange(1, 9)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(4))
        TARGETS[target](bytes(data))
