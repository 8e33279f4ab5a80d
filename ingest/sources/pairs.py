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
from ingest.sources.prompts import token_behind
from ingest.sources.registry import SOURCES, file_hashes, find_files

_FIELDS = ("clean", "corrupt", "correct", "wrong")


@SOURCES.register("pairs")
@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """JSON Lines of clean and corrupt prompts with their answers, as texts or token ids."""

    paths: tuple[str, ...]
    """Files and folders."""

    @property
    def longest(self) -> None:
        """None: that depends on the tokenizer."""
        return

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".jsonl",)))

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield one pair a line."""
        begin = np.array([] if vocabulary.bos is None else [vocabulary.bos], np.int64)
        for place, record in records(self.paths, _FIELDS):
            prompts = [_prompt(place, record[name], begin, spell) for name in _FIELDS[:2]]
            answers = {name: _answer(place, name, record, spell) for name in _FIELDS[2:]}
            yield TaskPair(name=place, clean=prompts[0], corrupt=prompts[1], answers=answers)


def _prompt(place: str, value: Any, begin: Array, spell: Spell) -> Array:
    if isinstance(value, str):
        return np.concatenate([begin, spell(value)])
    if isinstance(value, list) and value and all(_is_id(one) for one in value):
        return np.array(value, np.int64)
    raise unusable(
        place, "a prompt of it is neither a text nor a list of token ids", "--source pairs"
    )


def _answer(place: str, name: str, record: dict[str, Any], spell: Spell) -> int:
    value, clean = record[name], record["clean"]
    if _is_id(value):
        return int(value)
    found = None
    if isinstance(value, str):
        found = token_behind(clean if isinstance(clean, str) else "", value, spell)
    if found is None:
        raise SourceError(
            f"the answer {name!r} of {place}, {value!r}, is no single token behind the prompt; metrics compare single ones. "
            "What was committed before stands. Most tokenizers want a space in front (' Mary').",
            kind="bad-pair",
            path=place,
        )
    return found


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 31
