"""What no single step may do, whoever makes it: looked at when a key is made and before one is deleted."""

from __future__ import annotations

import json
import re
from typing import Protocol

from store import layout

_OBJECT = re.compile(r"groups/([^/]+)/parts/(\d{8})/([0-9a-f]{16})/.+")
_COMMIT = re.compile(r"groups/([^/]+)/commits/\d{6}/(\d{8})\.(\d+)\.json")
_ENDS = re.compile(r"groups/[^/]+/indexes/.+|assets/.+|doctor-.+")
"""What may be deleted beside attempts: derived, or a probe."""


class Objects(Protocol):
    """What is there."""

    _objects: dict[str, bytes]


class Ledger:
    """Attempts that records name, part by part; raises ``AssertionError`` at the step that breaks a promise.

    A commit names objects that are there, of the size it says. Of a part and a number there is one record, for ever.
    No object is deleted that a reader may be sent to: one of the last record of a part that is not retired, in a
    group that is not dropped. No record is deleted but those of dropped groups.
    """

    def __init__(self) -> None:
        self.named: dict[tuple[str, int], str] = {}
        self.records: dict[str, bytes] = {}
        self.deleted = 0

    def made(self, held: Objects, key: str, data: bytes) -> None:
        """Look at a key that was just made."""
        match = _COMMIT.fullmatch(key)
        if match is None:
            return
        assert self.records.setdefault(key, data) == data, f"{key} is another record now"
        record = json.loads(data)
        group, part = match[1], int(match[2])
        prefix = layout.attempt_prefix(group, part, record["attempt"])
        for item in record["objects"]:
            there = held._objects.get(prefix + item["path"])
            assert there is not None, f"{key} names {item['path']}, which is not there"
            assert len(there) == item["size"], f"{key} names {item['path']}, which is short"
        self.named[group, part] = record["attempt"]

    def deleting(self, held: Objects, key: str) -> None:
        """Look at a key that is about to be deleted."""
        self.deleted += key in held._objects
        match = _OBJECT.fullmatch(key)
        group = key.split("/")[1] if key.startswith("groups/") else ""
        if group and layout.dropped_key(group) in held._objects:
            return
        if match is None:
            assert _ENDS.fullmatch(key), f"{key} was deleted"
            return
        part = int(match[2])
        ended = any(layout.retired_key(one, part) in held._objects for one in (group, "tokens"))
        current = self.named.get((group, part)) == match[3]
        assert ended or not current, f"{key} was deleted, and a record names it"
