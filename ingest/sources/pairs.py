"""``pairs``: JSON Lines of clean and corrupt prompts and their answers.

A line is ``{"clean": …, "corrupt": …, "correct": …, "wrong": …}``, each a text or ready token ids (an answer: a text or one
id). Texts get the token that begins texts in front, where the tokenizer has one; answers stand behind the prompt, so most
begin with a space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.contract import Array, Spell, TaskPair, Vocabulary
from ingest.errors import SourceError
from ingest.sources.jsonl import records, unusable
from ingest.sources.registry import SOURCES, file_hashes, find_files

_FIELDS = ("clean", "corrupt", "correct", "wrong")


@SOURCES.register("pairs")
@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """JSON Lines of clean and corrupt prompts with their answers, as texts or token ids."""

    paths: tuple[str, ...]
    """Files and folders."""

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".jsonl",)))

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield one pair a line."""
        begin = [] if vocabulary.bos is None else [vocabulary.bos]
        for place, record in records(self.paths, _FIELDS):
            prompts = [_prompt(place, record[name], begin, spell) for name in _FIELDS[:2]]
            answers = {name: _answer(place, name, record[name], spell) for name in _FIELDS[2:]}
            yield TaskPair(name=place, clean=prompts[0], corrupt=prompts[1], answers=answers)


def _prompt(place: str, value: Any, begin: list[int], spell: Spell) -> Array:
    if isinstance(value, str):
        return np.concatenate([np.array(begin, np.int32), spell(value)])
    if isinstance(value, list) and value and all(type(one) is int for one in value):
        return np.array(value, np.int64)
    raise unusable(
        place, "a prompt of it is neither a text nor a list of token ids", "--source pairs"
    )


def _answer(place: str, name: str, value: Any, spell: Spell) -> int:
    if type(value) is int:
        return value
    ids = spell(value) if isinstance(value, str) else np.empty(0, np.int32)
    if len(ids) != 1:
        raise SourceError(
            f"the answer {name!r} of {place}, {value!r}, is {len(ids)} tokens; metrics compare single ones. What was "
            "committed before stands. Most tokenizers want a space in front (' Mary').",
            kind="bad-pair",
            path=place,
        )
    return int(ids[0])
