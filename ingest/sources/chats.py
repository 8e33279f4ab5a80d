"""``chats``: one dialogue a line, its messages under a field; the tokenizer's own template makes text of it.

A dialogue is one document and one sequence: it is never cut. What the template puts around messages is text like any other, so
every token has its place in the rendered text; which message and whose it is becomes the group ``roles``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ingest.contract import Dialogue
from ingest.errors import SourceError
from ingest.sources.jsonl import records, unusable
from ingest.sources.registry import SOURCES, file_hashes, find_files

_FLAGS = "--source chats:messages_field=…,name_field=…"


@SOURCES.register("chats")
@dataclass(frozen=True, kw_only=True, slots=True)
class Chats:
    """JSON Lines of dialogues, lists of ``{"role": …, "content": …}``, rendered by the tokenizer's chat template."""

    paths: tuple[str, ...]
    """JSON Lines files, or folders of them."""
    messages_field: str = "messages"
    """Field of the messages."""
    name_field: str | None = None
    """Field of a dialogue's name; None names it by its place."""
    too_long: str = "refuse"
    """``refuse`` or ``drop`` a dialogue with more tokens than the context."""

    def __post_init__(self) -> None:
        if self.too_long not in {"refuse", "drop"}:
            raise SourceError(
                f"dialogues that are too long were to be treated by {self.too_long!r}; known: refuse, drop. Nothing was written. "
                "Mend too_long.",
                kind="bad-source",
            )

    def inputs(self) -> Mapping[str, str]:
        """Return the sha256 of every file."""
        return file_hashes(find_files(self.paths, (".jsonl",)))

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield one dialogue a line that has messages."""
        some = False
        fields = [self.messages_field, *([self.name_field] if self.name_field else [])]
        for place, record in records(self.paths, fields):
            dialogue = self._dialogue(place, record)
            if dialogue.messages:
                some = True
                yield dialogue
        if not some:
            raise SourceError(
                f"the corpus {', '.join(self.paths)} holds no message. Nothing was written. Check --corpus.",
                kind="corpus-empty",
            )

    def _dialogue(self, place: str, record: dict[str, Any]) -> Dialogue:
        messages = record[self.messages_field]
        whole = isinstance(messages, list) and all(_is_message(one) for one in messages)
        if not whole:
            found = (
                f"its {self.messages_field} is no list of messages with role and content, both text"
            )
            raise unusable(place, found, _FLAGS)
        label = record[self.name_field] if self.name_field else None
        try:
            "".join(text for one in messages for text in (one["role"], one["content"])).encode()
        except UnicodeEncodeError as error:
            found = f"a message holds half a surrogate pair, {error.object[error.start]!a}"
            raise unusable(place, found, _FLAGS) from error
        return Dialogue(
            name=place if label is None else str(label),
            messages=tuple({"role": one["role"], "content": one["content"]} for one in messages),
        )


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and all(
        isinstance(one.get(key), str) for key in ("role", "content")
    )
