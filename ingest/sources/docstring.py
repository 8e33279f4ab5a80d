"""``docstring``: a Python function's arguments, and its docstring that lists them in order.

The answer is the argument that comes next in the definition, the wrong one another of it; corrupt prompts list names that
the definition does not have.

Source: Heimersheim and Janiak, A circuit for Python docstrings in a 4-layer attention-only transformer (2023).
"""

from __future__ import annotations

from dataclasses import dataclass

from ingest.sources.prompts import Draw, Prompt, Prompts
from ingest.sources.registry import SOURCES

_FUNCTIONS = ("load", "port", "send", "read", "parse", "make", "open", "get")
_ARGUMENTS = (
    *(
        "name",
        "size",
        "file",
        "key",
        "value",
        "path",
        "data",
        "node",
        "text",
        "time",
        "mode",
        "user",
        "line",
    ),
    *(
        "index",
        "type",
        "code",
        "list",
        "table",
        "order",
        "result",
        "count",
        "state",
        "shape",
        "model",
        "field",
    ),
)
_WORDS = ("new", "first", "last", "main", "old", "next", "whole", "same", "other", "given")


@SOURCES.register("docstring")
@dataclass(frozen=True, kw_only=True)
class Docstring(Prompts):
    """Pairs of Python docstrings: the next argument is that of the definition."""

    def drawn(self, draw: Draw) -> Prompt:
        """Return one prompt."""
        names, function = draw.several(_ARGUMENTS, 8), draw.one(_FUNCTIONS)
        before, listed, asked = names[:2], names[2:4], names[4]
        arguments = ", ".join(["self", *before, *listed, asked, names[5]])
        words = draw.several(_WORDS, 6)
        frame = (
            f'def {function}({arguments}):\n    """{words[0]} {words[1]}\n\n'
            f"    :param {{}}: {words[2]} {words[3]}\n    :param {{}}: {words[4]} {words[5]}\n    :param"
        )
        return Prompt(
            frame.format(*listed), frame.format(*names[6:8]), f" {asked}", f" {before[0]}"
        )
