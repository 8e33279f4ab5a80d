"""Images become rows: one for each patch, one for each token among which an image stands, or one for an image with its text.

What a model sees lies in the store as well, in the group ``inputs``: the bytes of every row's patch (or of a whole image, and the
tokens of its text, where the row is a pair). So another model of the same patches can be added later, wherever its worker
runs, and whoever looks at a row can look at its patch.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.errors import IngestError, ModelError, SourceError
from ingest.framing import Framing, check_unframed, special_ids
from ingest.models.seeing import check_size, rows_of
from ingest.packing import Framed, sequence_of
from ingest.plan import split_of
from ingest.showing import INPUTS, PIXELS, TEXT, images_of, patches_of
from ingest.writing import Progress, write_sequences
from store import Document, Store, TokenSequence, TokensWriter
from store.tables import column
from store.tokens import FLAG_FIRST_OF_DOCUMENT, FLAG_SPECIAL

if TYPE_CHECKING:
    from ingest.config import TokensConfig
    from ingest.contract import Array, Picture
    from ingest.models import LoadedModel


@dataclass(kw_only=True)
class Picturing:
    """Turns images into sequences, from any one on."""

    config: TokensConfig
    loaded: LoadedModel
    context: int

    def __post_init__(self) -> None:
        assert self.loaded.adapter.vision is not None
        among = self.loaded.adapter.vision.rows == "tokens"
        unused = ("duplicates", "generation", *(() if among else ("special_tokens",)))
        check_unframed(self.config, "whose rows are images", *unused)
        assert self.loaded.pictures is not None
        self._vision, self._pictures = self.loaded.adapter.vision, self.loaded.pictures
        self._tokenizer = self.loaded.tokenizer
        self._size: tuple[int, int] | None = None
        if self._vision.rows == "tokens":
            self._framing = Framing.of(self._tokenizer, self.config).sequence
            self._special_ids = special_ids(self._tokenizer)

    def sequences(self, position: Any) -> Iterator[tuple[TokenSequence, list[int]]]:
        """Yield (sequence, position behind it); a position is ``[images, rows]``, None the start."""
        done, rows = position or (0, 0)
        pictures = enumerate(self.config.source.pictures())
        for number, picture in itertools.islice(pictures, done, None):
            sequence = self._sequence(number, picture)
            rows += len(sequence)
            if self.config.rows is not None and rows > self.config.rows:
                return
            yield sequence, [number + 1, rows]

    @property
    def images(self) -> dict[str, Any]:
        """What the rows are, for a recipe; known once an image was looked at."""
        assert self._size is not None
        return images_of(self._vision, self._size)

    def check(self) -> None:
        """Raise ``corpus-empty`` unless the source makes at least one sequence, or what is wrong with the first."""
        if next(self.sequences(None), None) is None:
            raise SourceError(
                f"the source {self.config.source.kind!r} makes no sequence of at most {self.config.rows or 'any'} rows. Nothing "
                "was written. Check --corpus and --rows.",
                kind="corpus-empty",
            )

    def write(self, writer: TokensWriter, progress: Progress) -> None:
        """Write what is missing of the tokens group and seal it where the source ends."""
        write_sequences(self, writer, progress, self.config.rows)

    def pixels(self, picture: Picture) -> Array:
        """Return an image's pixels, ``uint8[height, width, 3]``, of the size of all.

        Raises
        ------
        SourceError
            ``image-broken``, or ``image-size``: its processor leaves images of different sizes.
        """
        found = self._pictures.pixels(picture.name, picture.data)
        size = (found.shape[0], found.shape[1])
        if self._size is None:
            check_size(self.loaded.adapter.family, self._vision, size)
            self._size = size
        if size != self._size:
            raise SourceError(
                f"the image {picture.name!r} comes out at {size[0]} x {size[1]} pixels, others at {self._size[0]} x "
                f"{self._size[1]}. What was committed before stands. Give the model's preprocessor_config.json one size, or a "
                "crop.",
                kind="image-size",
                path=picture.name,
            )
        return found

    def _sequence(self, number: int, picture: Picture) -> TokenSequence:
        size = self.pixels(picture).shape
        if self._vision.rows == "pairs":
            self._text(picture)  # refused now, not when the rows are there
        digest = hashlib.sha256(picture.data)
        if picture.text is not None:
            digest.update(picture.text.encode())
        sha256 = digest.hexdigest()
        held = Document(
            doc_id=number,
            name=picture.name,
            sha256=sha256,
            split=split_of(sha256, self.config.split_seed),
            text=picture.text if self.config.text else None,
        )
        grid = f"{size[0] // self._vision.patch}x{size[1] // self._vision.patch}"
        if self._vision.rows == "tokens":
            return self._among_tokens(held, picture, grid)
        count = 1 if self._vision.rows == "pairs" else rows_of(self._vision, (size[0], size[1]))
        flags = np.zeros(count, np.uint16)
        if self._vision.rows == "patches":
            flags[: self._vision.lead] = FLAG_SPECIAL
        flags[0] |= FLAG_FIRST_OF_DOCUMENT
        return TokenSequence(
            token_ids=np.zeros(count, np.int32),
            spans=[(held, 0, count)],
            char_start=np.full(count, -1 if picture.text is None else 0, np.int32),
            char_end=np.full(count, len(picture.text or "") or -1, np.int32),
            flags=flags,
            split=held.split,
            grid=grid if self._vision.rows == "patches" else None,
        )

    def _among_tokens(self, held: Document, picture: Picture, grid: str) -> TokenSequence:
        token = self._vision.token
        word = self._tokenizer.convert_ids_to_tokens(token)
        text = str(picture.text)
        text = text if word in text else f"{word}\n{text}"
        added = len(text) - len(str(picture.text))
        encoded = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids = np.array(encoded["input_ids"], np.int32)
        spans = np.array(encoded["offset_mapping"], np.int32).reshape(-1, 2) - added
        if int((ids == token).sum()) != 1:
            raise SourceError(
                f"the text of {picture.name!r} has {int((ids == token).sum())} places for its one image ({word!r}). What was "
                f"committed before stands. Write {word!r} once, or leave it out: it is put before the text.",
                kind="bad-image-text",
                path=picture.name,
            )
        spans[(spans < 0).any(1)] = -1
        high, wide = map(int, grid.split("x"))
        times = np.where(ids == token, high * wide, 1)
        framed = Framed.of(
            held,
            np.repeat(ids, times),
            np.repeat(spans, times, 0),
            self._framing,
            self._special_ids,
        )
        if len(framed) > self.context:
            raise SourceError(
                f"{picture.name!r} has {len(framed)} tokens, {high * wide} of them its image; a sequence has {self.context} at "
                f"most, and these are not cut. What was committed before stands. Use --context {len(framed)} or more.",
                kind="context-too-short",
                path=picture.name,
            )
        sequence = sequence_of([(framed, 0, len(framed))], type(self._framing)())
        return TokenSequence(
            token_ids=sequence.token_ids,
            spans=sequence.spans,
            char_start=sequence.char_start,
            char_end=sequence.char_end,
            flags=sequence.flags,
            split=held.split,
            grid=grid,
        )

    def columns(self) -> dict[str, str]:
        """Return how the columns of ``inputs`` are declared."""
        if self._vision.rows != "pairs":
            side = self._vision.patch
            return {PIXELS: f"uint8[{side},{side},3]"}
        size = self.pixels(next(self.config.source.pictures())).shape
        return {
            PIXELS: f"uint8[{size[0]},{size[1]},3]",
            TEXT: f"int32[{self._vision.text_tokens},2]",
        }

    def rows_seen(self, picture: Picture, token_ids: Array) -> dict[str, Array]:
        """Return what a sequence's rows see, ``{column: [T, …]}``."""
        pixels = self.pixels(picture)
        if self._vision.rows == "pairs":
            return {PIXELS: pixels[None], TEXT: self._text(picture)[None]}
        patches = patches_of(pixels, self._vision.patch)
        seen = np.zeros((len(token_ids), *patches.shape[1:]), np.uint8)
        if self._vision.rows == "tokens":
            seen[token_ids == self._vision.token] = patches
        else:
            seen[self._vision.lead :] = patches
        return {PIXELS: seen}

    def _text(self, picture: Picture) -> Array:
        """Return the tokens of a pair's text and whether each is one, ``int32[L, 2]``.

        Raises
        ------
        SourceError
            ``text-too-long``: there are more than the model takes, and the source is to refuse them.
        """
        longest = self._vision.text_tokens
        count = len(self._tokenizer(str(picture.text), verbose=False)["input_ids"])
        if count > longest and self.config.source.too_long != "cut":
            raise SourceError(
                f"the text of {picture.name!r} has {count} tokens; {self.loaded.name} takes {longest}. What was committed before "
                "stands. Shorten it, or cut all that are too long (--source image_text:too_long=cut).",
                kind="text-too-long",
                path=picture.name,
            )
        encoded = self._tokenizer(
            str(picture.text), padding="max_length", truncation=True, max_length=longest
        )
        both = (encoded["input_ids"], encoded["attention_mask"])
        return np.array(both, np.int32).T.copy()


def write_inputs(store: Store, picturing: Picturing) -> None:
    """Write what is missing of the group ``inputs`` and seal it."""
    tokens = store.groups["tokens"]
    columns = picturing.columns()
    recipe = {
        "schema": 1,
        "tokens": tokens.recipe_hash,
        "shown": sorted(columns),  # what models look at, and no site's values
        "mask": None,
    }
    writer = store.writer(INPUTS, columns=columns, recipe=recipe)
    pictures = enumerate(picturing.config.source.pictures())
    number, picture = -1, None
    with writer:
        for part in store.view.parts("tokens"):
            if writer.done(part):
                continue
            data = store.view.table(store.view.commit("tokens", part), "tokens.parquet")
            row, doc, ids = (column(data, name) for name in ("row", "doc_id", "token_id"))
            bounds = [0, *(np.flatnonzero(np.diff(doc)) + 1).tolist(), len(doc)]
            for low, high in itertools.pairwise(bounds):
                while number < doc[low]:
                    number, picture = next(pictures)
                assert picture is not None
                writer.put(row[low:high], picturing.rows_seen(picture, ids[low:high]))


def check_shown(loaded: LoadedModel, shows: str | None) -> None:
    """Raise where a model does not take what a source shows it.

    Parameters
    ----------
    shows
        ``images`` or ``pairs``; None for texts.

    Raises
    ------
    ModelError
        ``wrong-source``.
    """
    vision = loaded.adapter.vision
    takes = {None: None, "patches": "images", "tokens": "pairs", "pairs": "pairs"}
    wanted = takes[None if vision is None else vision.rows]
    if shows == wanted or (shows is None and vision is not None and vision.rows == "tokens"):
        return
    name = {"images": "images", "pairs": "images with texts", None: "texts"}
    source = {
        "images": "--source images",
        "pairs": "--source image_text",
        None: "a --corpus of texts",
    }
    raise ModelError(
        f"{loaded.name} ({loaded.adapter.family}) takes {name[wanted]}, and the source gives {name[shows]}. Nothing was written. "
        f"Use {source[wanted]}, or another model.",
        kind="wrong-source",
    )


def resolve_rows(config: TokensConfig, loaded: LoadedModel) -> int:
    """Return the rows of a sequence at most: all of an image's, one of a pair, or as asked among tokens.

    Raises
    ------
    IngestError
        ``setting-unused``, ``context-too-long``.
    """
    vision = loaded.adapter.vision
    assert vision is not None
    assert loaded.pictures is not None
    if vision.rows == "tokens":
        limit = loaded.adapter.max_positions
        patches = (vision.height // vision.patch) * (vision.width // vision.patch)
        context = config.context or min(limit or 2048, 2048)
        if context <= patches or (limit is not None and context > limit):
            raise IngestError(
                f"a context of {context} tokens was asked for; an image takes {patches} of them, and {loaded.name} has "
                f"{limit or 'any number of'} positions. Nothing was written. Use another --context.",
                kind="context-too-short" if context <= patches else "context-too-long",
            )
        return context
    if config.context is not None:
        raise IngestError(
            f"--context {config.context} was said of images, whose rows are their patches. Nothing was written. Leave it out.",
            kind="setting-unused",
        )
    if vision.rows == "pairs":
        return 1
    first = next(config.source.pictures())
    size = loaded.pictures.pixels(first.name, first.data).shape
    check_size(loaded.adapter.family, vision, (size[0], size[1]))
    return rows_of(vision, (size[0], size[1]))
