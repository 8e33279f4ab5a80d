"""Dialogues as text: the template's rendering, and which of its characters belong to which message."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest.contract import Array, ChatSource, Dialogue
from ingest.errors import ModelError, SourceError
from store import Store
from store.tables import column

GROUP = "roles"
ROLES = ("system", "user", "assistant", "tool")
OTHER = 255
"""Of a role that is none of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A dialogue as its template writes it."""

    text: str
    ends: tuple[int, ...]
    """Where each message's part of the text ends; it begins where the one before ended."""


def check_template(tokenizer: Any) -> None:
    """Raise ``no-template`` where a tokenizer has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "dialogues were to be rendered, and the model's tokenizer has no chat template. Nothing was written. Use a model "
            "that was trained on dialogues, or put a chat_template.jinja beside its tokenizer.",
            kind="no-template",
        )


def rendered(tokenizer: Any, dialogue: Dialogue) -> Rendered:
    """Return the text of a dialogue and where each message ends in it.

    A message's part is what its coming adds to the text: the template is asked for the dialogue up to each. Where the text up to
    a message is no beginning of the whole (some templates write about the end at the beginning), the place where its own
    content ends is taken.

    Raises
    ------
    SourceError
        ``bad-dialogue``: the template takes the dialogue for none, or does not write a message's content.
    """
    messages = list(dialogue.messages)
    text = _render(tokenizer, dialogue, messages)
    ends, at = [], 0
    for count in range(1, len(messages)):
        try:
            before = _render(tokenizer, dialogue, messages[:count])
        except SourceError:
            before = None  # half a dialogue may be none to the template
        if before is not None and len(before) >= at and text.startswith(before):
            at = len(before)
        else:
            content = messages[count - 1]["content"].strip()
            place = text.find(content, at)
            if place < 0:
                raise _bad(dialogue, f"the template does not write the content of message {count}")
            at = place + len(content)
        ends.append(at)
    return Rendered(text=text, ends=(*ends, len(text)))


def _render(tokenizer: Any, dialogue: Dialogue, messages: Sequence[Mapping[str, str]]) -> str:
    try:
        text: str = tokenizer.apply_chat_template(list(messages), tokenize=False)
    except Exception as error:  # templates raise what they like
        raise _bad(dialogue, f"the template refuses it: {str(error).splitlines()[0]}") from error
    return text


def _bad(dialogue: Dialogue, found: str) -> SourceError:
    return SourceError(
        f"dialogue {dialogue.name!r} cannot be rendered: {found}. What was committed before stands. Mend the dialogue, or use a "
        "model with another template.",
        kind="bad-dialogue",
        path=dialogue.name,
    )


def write_roles(store: Store, source: ChatSource, tokenizer: Any) -> None:
    """Write what is missing of the group ``roles``: every token's message (its number) and role (a number in `ROLES`)."""
    recipe = {
        "schema": 1,
        "tokens": store.groups["tokens"].recipe_hash,
        "roles": list(ROLES),
        "mask": None,
    }
    columns = {"message": "int32", "role": "uint8"}
    writer = store.writer(GROUP, columns=columns, recipe=recipe)
    dialogues = enumerate(source.dialogues())
    number, dialogue = -1, None
    with writer:
        for part in store.view.parts("tokens"):
            if writer.done(part):
                continue
            data = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
            doc, start, row = (column(data, name) for name in ("doc_id", "char_start", "row"))
            message = np.full(len(row), -1, np.int32)
            role = np.full(len(row), OTHER, np.uint8)
            bounds = [0, *(np.flatnonzero(np.diff(doc)) + 1).tolist(), len(doc)]
            for low, high in itertools.pairwise(bounds):
                while number < doc[low]:
                    number, dialogue = next(dialogues)
                assert dialogue is not None
                message[low:high], role[low:high] = _told(
                    dialogue, rendered(tokenizer, dialogue), start[low:high]
                )
            writer.put(row, {"message": message, "role": role})


def _told(dialogue: Dialogue, text: Rendered, start: Array) -> tuple[Array, Array]:
    """Return the message and role of tokens that begin at some characters; −1 and `OTHER` of those that stand nowhere."""
    message = np.searchsorted(text.ends, start, side="right").clip(0, len(text.ends) - 1)
    codes = np.array([code_of(one["role"]) for one in dialogue.messages], np.uint8)
    nowhere = start < 0
    return (
        np.where(nowhere, -1, message).astype(np.int32),
        np.where(nowhere, OTHER, codes[message]).astype(np.uint8),
    )


def code_of(role: str) -> int:
    """Return the number that stands for a role."""
    return ROLES.index(role) if role in ROLES else OTHER


def fits(source: ChatSource, dialogue: Dialogue, tokens: int, context: int) -> bool:
    """Return whether a dialogue fits the context.

    Raises
    ------
    SourceError
        ``dialogue-too-long``: it does not, and the source is to refuse it.
    """
    if tokens <= context:
        return True
    if source.too_long == "drop":
        return False
    raise SourceError(
        f"dialogue {dialogue.name!r} has {tokens} tokens; a sequence has {context} at most, and dialogues are not cut. What was "
        f"committed before stands. Use --context {tokens} or more, or --source chats:too_long=drop.",
        kind="dialogue-too-long",
        path=dialogue.name,
    )
