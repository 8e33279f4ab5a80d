"""Fuzz a target, guided by coverage: ``pip install atheris; python tests/store/fuzz.py TARGET [-max_total_time=600 …]``.

What comes after the target is libFuzzer's. It starts from ``tests/store/fuzz_corpus/TARGET``, which ``test_fuzz.py`` runs
again every time. What it finds worth keeping goes there, too, or to a folder that is named (``-merge=1 FOLDER`` then takes
from it what adds something); an input that fails is written to the current folder.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["store"]):
    from store.testing.fuzz import TARGETS, seeds

CORPUS = Path(__file__).parent / "fuzz_corpus"


def main():
    target, options = sys.argv[1], sys.argv[2:]
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.iterdir()):
        for number, data in enumerate(seeds(target)):
            (folder / f"seed-{number}").write_bytes(data)
    atheris.Setup([sys.argv[0], "-max_len=65536", *options, str(folder)], TARGETS[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
