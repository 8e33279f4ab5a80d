"""Image files as pixels: cut and scaled to whole bytes, as a model's own processor does, and from bytes to the numbers it takes.

What is kept of an image is what comes between the two: bytes of the size the model looks at, from which its numbers, and those of
a model that scales them otherwise, follow to rounding.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ingest.errors import ModelError, SourceError, first_line

_WIDE = ("I", "F")  # modes of more than a byte a colour, which would be clipped
FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pictures:
    """A model's processor of images, of transformers and without torchvision."""

    processor: Any
    files: dict[str, bytes]
    """What it is made from."""

    @classmethod
    def of(cls, folder: Path) -> Pictures:
        """Read it from a model's folder.

        Raises
        ------
        ModelError
            ``processor-missing``, or ``model-broken``.
        """
        from transformers import AutoImageProcessor

        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        if not files:
            raise ModelError(
                f"the model in {folder} sees images, and no {FILES[0]} there says how they become pixels. Nothing was loaded. "
                "Copy it there from where the model came from.",
                kind="processor-missing",
                path=str(folder),
            )
        try:
            processor = AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
            )
            json.loads(next(iter(files.values())))
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ModelError(
                f"the processor of images in {folder} cannot be read: {first_line(error)}. Nothing was loaded. Copy its "
                "files again.",
                kind="model-broken",
                path=str(folder),
            ) from error
        return cls(processor=processor, files=files)

    def scaling(self) -> dict[str, Any]:
        """Return what decides the numbers a model takes of some pixels, for a recipe."""
        made: dict[str, Any] = {}
        if self.processor.do_rescale:
            made["factor"] = repr(float(self.processor.rescale_factor))
        if self.processor.do_normalize:
            for name in ("image_mean", "image_std"):
                made[name] = [repr(float(one)) for one in getattr(self.processor, name)]
        return made

    def pixels(self, name: str, data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return an image file's pixels, ``uint8[height, width, 3]``, turned upright, cut and scaled.

        Transparency and palettes become plain colours, of moving images the first picture is taken.

        Raises
        ------
        SourceError
            ``image-broken``: it is no image, or a damaged one.
        """
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as opened:
                opened.load()
                if opened.mode in _WIDE or opened.mode.startswith("I;"):
                    raise _broken(
                        name, f"its pixels are of mode {opened.mode}, not of one byte a colour"
                    )
                upright = ImageOps.exif_transpose(opened).convert("RGB")
            made = self.processor(
                images=upright, return_tensors="np", do_rescale=False, do_normalize=False
            )
        except UnidentifiedImageError as error:
            raise _broken(name, "it is in no format that is known") from error
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise _broken(name, first_line(error)) from error
        return np.ascontiguousarray(made["pixel_values"][0].transpose(1, 2, 0).astype(np.uint8))

    def values(self, pixels_NHWC: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
        """Return what a model takes of some pixels, ``float32[N, 3, height, width]``."""
        value = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2).to(torch.float32)
        if self.processor.do_rescale:
            value = value * self.processor.rescale_factor
        if self.processor.do_normalize:
            mean, std = (
                torch.tensor(getattr(self.processor, name)).view(1, -1, 1, 1)
                for name in ("image_mean", "image_std")
            )
            value = (value - mean) / std
        return value.contiguous()


def _broken(name: str, found: str) -> SourceError:
    return SourceError(
        f"the image {name!r} cannot be read: {found}. What was committed before stands. Mend the file, or leave it out of "
        "--corpus.",
        kind="image-broken",
        path=name,
    )
