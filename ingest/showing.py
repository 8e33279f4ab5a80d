"""What a model that sees is given of a store's rows: pixels of patches, laid together again, and the texts of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ingest.errors import ModelError
from ingest.models.contract import Given, Vision
from store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ingest.contract import Array
    from ingest.models import LoadedModel

INPUTS = "inputs"
"""The group that holds what a model sees beside token ids."""
PIXELS, TEXT = "pixels", "text"


def patches_of(pixels: Array, side: int) -> Array:
    """Return the patches of an image, ``[P, side, side, 3]``, row by row."""
    high, wide = pixels.shape[0] // side, pixels.shape[1] // side
    cut = pixels[: high * side, : wide * side].reshape(high, side, wide, side, 3)
    return cut.transpose(0, 2, 1, 3, 4).reshape(-1, side, side, 3)


def image_of(patches: Array, grid: tuple[int, int]) -> Array:
    """Return the images that patches ``[N, P, side, side, 3]`` make, ``[N, height, width, 3]``."""
    count, side = len(patches), patches.shape[2]
    laid = patches.reshape(count, *grid, side, side, 3).transpose(0, 1, 3, 2, 4, 5)
    return laid.reshape(count, grid[0] * side, grid[1] * side, 3)


def images_of(vision: Vision, size: tuple[int, int]) -> dict[str, Any]:
    """Return what rows of images of a height and width are, for the recipe of their tokens."""
    return {
        "rows": vision.rows,
        "height": size[0],
        "width": size[1],
        "patch": vision.patch,
        "lead": vision.lead,
        "token": vision.token,
        "text_tokens": vision.text_tokens,
    }


def check_inputs(store: Store, loaded: LoadedModel) -> None:
    """Raise unless the rows of a store are what a model makes rows of.

    Raises
    ------
    ModelError
        ``inputs-differ``: of other patches, other sizes, of texts instead of images or the other way round.
    """
    vision = loaded.adapter.vision
    told = store.groups["tokens"].recipe.get("images")
    if told is None and (vision is None or vision.rows == "tokens"):
        return
    if told is not None and vision is not None:
        size = (int(told["height"]), int(told["width"]))
        own = size if vision.any_size else (vision.height, vision.width)
        if images_of(vision, own) == dict(told):
            return
    held = "texts" if told is None else _in_words(told)
    takes = "texts"
    if vision is not None:
        takes = _in_words(images_of(vision, (vision.height, vision.width)))
    raise ModelError(
        f"the rows of {store.url} are of {held}; {loaded.name} looks at {takes}. Nothing was written. Use a model of the same "
        "rows, or make a store of its own (--out).",
        kind="inputs-differ",
    )


def _in_words(images: Mapping[str, Any]) -> str:
    size = f"images of {images['height']} x {images['width']} pixels"
    if images["rows"] == "pairs":
        return f"{size}, each with a text of {images['text_tokens']} tokens"
    among = ", among tokens" if images["rows"] == "tokens" else f" behind {images['lead']} rows"
    return f"{size}, in patches of {images['patch']}{among}"


class Showing:
    """What a model that sees is given of a store's rows, batch by batch."""

    def __init__(self, store: Store, loaded: LoadedModel) -> None:
        assert loaded.adapter.vision is not None
        assert loaded.pictures is not None
        self._store, self._vision, self._pictures = store, loaded.adapter.vision, loaded.pictures

    def given(self, row_ids: Array, token_ids: Array, grids: list[str], size: int) -> Given:
        """Return what goes with the rows of a batch of ``size`` sequences; those that fill it up see black.

        Parameters
        ----------
        row_ids, token_ids
            Of the batch's rows, sequence by sequence.
        grids
            Rows and columns of patches, ``4x4``, of each sequence that has some.
        """
        import torch

        pixels = self._store.gather(f"{INPUTS}:{PIXELS}", row_ids)
        if self._vision.rows == "pairs":
            text = self._store.gather(f"{INPUTS}:{TEXT}", row_ids)
            filled = np.zeros((size, *text.shape[1:]), np.int64)
            filled[: len(text)] = text
            filled[len(text) :] = text[:1]  # so that padding, too, ends where texts end
            ids, mask = (torch.from_numpy(filled[..., at].copy()) for at in (0, 1))
            return Given(pixels=self._filled(pixels, size), text=ids, text_mask=mask)
        grid = _one_grid(grids, self._vision)
        if self._vision.rows == "tokens":
            patches = pixels[token_ids == self._vision.token]
            return Given(pixels=self._pictures.values(image_of(_parted(patches, grid), grid)))
        of_each = pixels.reshape(-1, self._vision.lead + grid[0] * grid[1], *pixels.shape[1:])
        images = image_of(of_each[:, self._vision.lead :], grid)
        return Given(pixels=self._filled(images, size))

    def _filled(self, images: Array, size: int) -> torch.Tensor:
        filled = np.zeros((size, *images.shape[1:]), np.uint8)
        filled[: len(images)] = images
        return self._pictures.values(filled)


def _parted(patches: Array, grid: tuple[int, int]) -> Array:
    return patches.reshape(-1, grid[0] * grid[1], *patches.shape[1:])


def _one_grid(grids: list[str], vision: Vision) -> tuple[int, int]:
    """Return the grid of a batch's images; all of a store have one."""
    if not grids:
        return vision.height // vision.patch, vision.width // vision.patch
    high, _, wide = grids[0].partition("x")
    return int(high), int(wide)


def sees_of(store: Store) -> str | None:
    """Return what the rows of a store show alone, ``texts`` or ``images``; None for images with texts."""
    columns = store.groups[INPUTS].columns if INPUTS in store.groups else {}
    if not columns:
        return "texts"
    return None if TEXT in columns or store.groups["tokens"].recipe.get("tokenizer") else "images"
