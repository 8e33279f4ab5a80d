"""What ingest asks of its surroundings: sources of rows, a runtime to place workers, observers to show them to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from ingest.models.facts import ModelFacts

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceDocument:
    """A named text, as a source gives it."""

    name: str
    text: str


class TextSource(Protocol):
    """A frozen config that yields documents, the same ones in the same order every time."""

    kind: ClassVar[str]

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def documents(self) -> Iterator[SourceDocument]:
        """Yield the documents in their order; ``SourceError`` where one cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens there are; a function of the tokenizer, which the rows' recipe holds."""

    tokens: int
    """Ids run from 0 to one less."""
    special: tuple[int, ...]
    """Ids that stand for no text, sorted."""
    bos: int | None
    """Id that begins a text; None where the tokenizer names none."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenDocument:
    """A named document whose token ids are ready: nothing is cut, added or spelled out."""

    name: str
    token_ids: Array
    """``int[T]``, special tokens included."""


@runtime_checkable
class TokenSource(Protocol):
    """A frozen config that yields documents of ready token ids, the same ones in the same order every time.

    One drawn from a known process may have a method ``truth()``, which returns files that hold it; they become an asset.
    """

    kind: ClassVar[str]

    @property
    def longest(self) -> int | None:
        """Tokens of the longest document, where documents must stay whole; None where they may be cut."""

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def token_documents(self, vocabulary: Vocabulary) -> Iterator[TokenDocument]:
        """Yield the documents in their order; ``SourceError`` where the vocabulary cannot say them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskPair:
    """A prompt, the same prompt with what decides the answer taken away, and what is asked behind their last tokens."""

    name: str
    clean: Array
    """``int[T]``, special tokens included."""
    corrupt: Array
    """``int[T]``, position for position what ``clean`` is."""
    answers: Mapping[str, int]
    """Token ids by name: ``correct`` is the answer to ``clean``, ``wrong`` one it is compared with."""


Spell = Callable[[str], Array]
"""Text → the tokenizer's ids, ``int32[T]``, nothing around them."""


@runtime_checkable
class PairSource(Protocol):
    """A frozen config that yields pairs of prompts, the same ones in the same order every time."""

    kind: ClassVar[str]

    @property
    def longest(self) -> int | None:
        """Tokens of the longest prompt there can be; None where only its tokenizer tells."""

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def pairs(self, vocabulary: Vocabulary, spell: Spell) -> Iterator[TaskPair]:
        """Yield the pairs in their order; ``SourceError`` where the tokenizer cannot say one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialogue:
    """A named list of messages."""

    name: str
    messages: tuple[Mapping[str, str], ...]
    """``{"role": …, "content": …}``, in their order."""


@runtime_checkable
class ChatSource(Protocol):
    """A frozen config that yields dialogues, the same ones in the same order every time."""

    kind: ClassVar[str]

    @property
    def too_long(self) -> str:
        """``refuse`` or ``drop``: what becomes of a dialogue with more tokens than a sequence takes."""

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in their order; ``SourceError`` where one cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A named image, as its file holds it, with its text where it has one."""

    name: str
    data: bytes
    text: str | None


@runtime_checkable
class PictureSource(Protocol):
    """A frozen config that yields images, the same ones in the same order every time."""

    kind: ClassVar[str]
    shows: ClassVar[str]
    """``images`` alone, or ``pairs`` of an image and a text."""

    def inputs(self) -> Mapping[str, str]:
        """Return what identifies the input: file name → sha256."""

    def pictures(self) -> Iterator[Picture]:
        """Yield the images in their order; ``SourceError`` where one cannot be read."""


class VectorSource(Protocol):
    """A frozen config that yields rows of numbers instead of text, part by part."""

    kind: ClassVar[str]

    @property
    def columns(self) -> Mapping[str, str]:
        """Column declarations, ``{"x": "float32[64]"}``."""

    def block(self, part: int, rows: int) -> Mapping[str, Any]:
        """Return a part's rows: arrays for dense columns, a function of (config, part) alone."""

    def truth(self) -> Mapping[str, bytes]:
        """Return the files that hold the planted truth."""

    def truth_codes(self, part: int, rows: int) -> tuple[Array, Array, Array]:
        """Return the planted (row in part, feature, value) of a part."""


def elsewhere(runtime: Runtime) -> bool:
    """Return whether a runtime's workers live in other processes, and make their own of all they need."""
    return bool(getattr(runtime, "elsewhere", False))


class StoppedError(Exception):
    """A worker left a part because it was told to; nothing of that part remains."""


class Worker(Protocol):
    """A plain class a runtime may place anywhere; it writes its own rows and returns a small record.

    A worker may have a method ``stop()``, called from another thread while ``run`` is at work: ``run`` then ends as soon
    as that is safe, drops what it began and raises `StoppedError`.
    """

    def run(self, part: int) -> Any:
        """Do one part (doing it again is no error) and return something small."""

    def close(self) -> None:
        """Finish what the worker holds open."""


class Runtime(Protocol):
    """Places workers and hands them parts.

    One whose workers live in other processes says so: ``elsewhere = True``.
    """

    def map(
        self, make_worker: Callable[[], Worker], parts: Sequence[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (part, what its worker returned) as parts are done, in any order, each part once.

        Parameters
        ----------
        make_worker
            Picklable: a worker elsewhere is made there, and opens and loads what it needs itself.

        Raises
        ------
        ActlakeError
            What a worker raised; or at the end, where some parts failed wherever they were tried while the others were
            done, one of kind ``parts-failed`` whose ``where["parts"]`` maps each (as text) to its last failure.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class SequenceBlock:
    """Whole sequences of one part, one behind the other; the same while harvesting and from the store.

    A block is one batch of the harvest (the last one of a part may be smaller), without its padding.
    """

    part: int
    row_ids: Array
    """``int64[R]``, ascending without gaps."""
    bounds: Array
    """``int64[S + 1]``; sequence i is the rows ``bounds[i]:bounds[i + 1]`` of the block."""
    tokens: Mapping[str, Array]
    """The columns of the tokens table (``token_id``, ``pos``, ``flags``, ``seq_id``, …), ``[R]`` each."""
    sites: Mapping[str, Any]
    """Site → CPU tensor ``[R, *shape]``, in the dtype the store keeps, holding the values it keeps."""

    @classmethod
    def cut(
        cls,
        part: int,
        columns: Mapping[str, Array],
        bounds: Array,
        *,
        first: int,
        count: int,
        sites: Mapping[str, Any],
    ) -> Self:
        """Return the block of sequences ``first … first + count - 1`` of a part.

        Parameters
        ----------
        columns
            The part's whole tokens table.
        bounds
            ``int64[S + 1]``: where the part's sequences begin in it, and its end.
        sites
            The values at these sequences' rows.
        """
        mine = bounds[first : first + count + 1]
        tokens = {name: values[mine[0] : mine[-1]] for name, values in columns.items()}
        return cls(
            part=part, row_ids=tokens["row"], bounds=mine - mine[0], tokens=tokens, sites=sites
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Harvest:
    """What observers are told of a harvest before its first part."""

    url: str
    recipe: Mapping[str, Any]
    """Of the harvested group."""
    dtype: str
    """Dtype in which values are kept; observers see them in it, whether they are stored or not."""
    sites: tuple[str, ...]
    """Sites the harvest stores."""
    model: ModelFacts


class Observer(Protocol):
    """Sees every part of a harvest while it is in memory; live statistics satisfy this.

    Picklable until ``begin``: a worker elsewhere gets a copy of its own.
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """What it needs captured; these need not be columns the harvest stores."""

    def done(self, part: int) -> bool:
        """Return whether what it has to say of a part is committed."""

    def begin(self, part: int) -> None:
        """Begin a part, forgetting one that was not ended."""

    def observe(self, block: SequenceBlock) -> None:
        """Look at some sequences of the part; blocks come in order and cover it."""

    def end(self, part: int) -> None:
        """Commit what was seen; called before the harvested part commits, so that none lacks it."""

    def close(self) -> None:
        """Let go of what it holds; seal what is complete."""


class ObserverPlan(Protocol):
    """An observer to be: frozen data, asked for its sites before anything is written."""

    def requires(self, model: ModelFacts, stored: Sequence[str]) -> tuple[str, ...]:
        """Return the sites it needs of a model whose sites ``stored`` are kept; raises where it cannot be had."""

    def observer(self, harvest: Harvest) -> Observer:
        """Return the observer of one harvest."""
