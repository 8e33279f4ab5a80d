"""What the 8-bit codecs share: blocks of 64 values of a row, each with its own scale, one byte a value.

A coded row is its D code bytes, then the scale of every block as bfloat16 bits (little-endian). A scale is the
block's largest magnitude, rounded up, so that what it divides stays within [-1, 1]. To a Zarr reader the column is
a ``uint8`` array of coded rows.

Dimensions: R rows, D values of a row, B blocks of a row.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from store.codecs.contract import LITTLE, Array, ZarrForm
from store.schema import Column
from store.summary import bfloat16_bits, float32_of_bits

BLOCK = 64
_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}
_SMALLEST = {
    "bfloat16": 2.0**-133,
    "float16": 2.0**-24,
    "float32": 2.0**-149,
}  # steps of subnormal values
_FLOATS = tuple(_ROUNDING)
_FLOAT32_STEPS = 2.0**-21  # the products above are a few roundings of values within [-1, 1]
_FLOAT16_MAX = float(np.finfo(np.float16).max)


def refuses(column: Column) -> str | None:
    """Return why a column has no 8-bit form."""
    if column.dtype in _FLOATS:
        return None
    return f"it holds {column.dtype}; 8-bit codecs take {', '.join(_FLOATS)}"


def row_bytes(column: Column) -> int:
    """Return D + 2·B."""
    width = int(np.prod(column.shape))
    return width + 2 * -(-width // BLOCK)


def zarr_form(column: Column, codec: str) -> ZarrForm:
    """Return an array of coded rows, with what it takes to decode them."""
    return ZarrForm(
        data_type="uint8",
        row_shape=(*[1] * (len(column.shape) - 1), row_bytes(column)),
        fill_value=0,
        chain=(LITTLE,),
        attributes={
            "codec": codec,
            "logical_dtype": column.dtype,
            "logical_shape": list(column.shape),
        },
    )


def normalised(chunk: Array, column: Column) -> tuple[Array, Array]:
    """Return (values over their block's scale ``float32[R, B, 64]``, scales as bits ``uint16[R, B]``)."""
    wide = float32_of_bits(chunk) if column.bits else chunk.astype(np.float32)
    flat_RD = wide.reshape(len(wide), -1)
    short = -flat_RD.shape[1] % BLOCK
    x_RBK = np.pad(flat_RD, ((0, 0), (0, short))).reshape(len(wide), -1, BLOCK)
    largest_RB = np.abs(x_RBK).max(axis=2)
    if not np.isfinite(largest_RB).all():
        msg = "values that are not finite have no 8-bit form"
        raise ValueError(msg)
    bits_RB = bfloat16_bits(largest_RB)
    bits_RB += float32_of_bits(bits_RB) < largest_RB  # the next larger bfloat16
    scale_RB = float32_of_bits(bits_RB)
    if not np.isfinite(scale_RB).all():
        msg = f"values up to {largest_RB.max():g} have no scale in bfloat16"
        raise ValueError(msg)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_RBK /= scale_RB[:, :, None]
    x_RBK[scale_RB == 0] = 0
    return x_RBK, bits_RB


def packed(code_RBK: Array, scale_bits_RB: Array, column: Column) -> Array:
    """Return coded rows, ``uint8[R · (D + 2·B)]``."""
    rows, width = len(code_RBK), int(np.prod(column.shape))
    out = np.empty((rows, row_bytes(column)), np.uint8)
    out[:, :width] = code_RBK.reshape(rows, -1)[:, :width].view(np.uint8)
    out[:, width:] = np.ascontiguousarray(scale_bits_RB, "<u2").view(np.uint8)
    return out.reshape(-1)


def unpacked(coded: Any, out: Array, column: Column) -> tuple[Array, Array]:
    """Return (code bytes ``uint8[R, D]``, scales ``float32[R, D]``), or raise ``ValueError``."""
    data, width = np.frombuffer(coded, np.uint8), int(np.prod(column.shape))
    if len(data) != len(out) * row_bytes(column):
        msg = f"{len(data)} bytes for {len(out)} rows of {row_bytes(column)}"
        raise ValueError(msg)
    rows = data.reshape(len(out), -1)
    bits_RB = np.ascontiguousarray(rows[:, width:]).view("<u2")
    scale_RB = float32_of_bits(bits_RB.astype(np.uint16))
    if not np.isfinite(scale_RB).all():
        msg = "a block has a scale that is not finite"
        raise ValueError(msg)
    return rows[:, :width], np.repeat(scale_RB, BLOCK, axis=1)[:, :width]


def store_decoded(values_RD: Array, out: Array, column: Column) -> None:
    """Round float32 values into ``out``; a scale rounded up beyond float16 does not make an infinity."""
    shaped = values_RD.reshape(out.shape)
    if column.dtype == "float16":
        np.clip(shaped, -_FLOAT16_MAX, _FLOAT16_MAX, out=shaped)
    out[...] = bfloat16_bits(shaped) if column.bits else shaped


def bound(unit_RBK: Array, chunk: Array, column: Column) -> Array:
    """Return the largest error of each value, ``float64`` of the chunk's shape.

    Parameters
    ----------
    unit_RBK
        The same over the block's scale, before what is decoded is rounded to the column's dtype.
    """
    x_RBK, bits_RB = normalised(chunk, column)
    scale_RB1 = float32_of_bits(bits_RB)[:, :, None].astype(np.float64)
    error = (unit_RBK + _FLOAT32_STEPS) * np.broadcast_to(scale_RB1, x_RBK.shape)
    error += _ROUNDING[column.dtype] * (np.abs(x_RBK) * scale_RB1 + error) + _SMALLEST[column.dtype]
    width = int(np.prod(column.shape))
    return np.asarray(error.reshape(len(chunk), -1)[:, :width].reshape(chunk.shape))
