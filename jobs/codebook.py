"""The frozen form of a dictionary.

Every linear dictionary, whatever it was trained with, ends as one affine map, one threshold and
unit decoder rows in the units of the stored rows, so that all consumers share one inference path.
kept sparse: no whole rows × latents matrix is ever held, at the price of walking rows in blocks.

Dimensions: R rows, D width, L latents, N active (row, latent) pairs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from jobs.codes import Codes, Pattern, PlainCodeOps, positions
from jobs.errors import JobError
from store.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

WEIGHTS_FILE = "dictionary.safetensors"
CARD_FILE = "dictionary.json"
FORMAT = "actlake-dictionary/1"
WIDER_FORMAT = "actlake-dictionary/2"
"""What is written where width_out, a skip or row_k say more than the first format can."""
UNIT_TOLERANCE = (
    1e-4  # float32 rows of width 8192 normalise to within 1e-6; imported ones are looser
)
BLOCK_BYTES = (
    32 << 20
)  # one block of float32 pre-activations; larger blocks were no faster on two cores


@dataclass(frozen=True, eq=False)
class Codebook:
    """A dictionary as everybody reads it.

    ``π = x W_enc + b_enc``, ``f = π·1[π > θ]``, ``x̂ = f W_dec + b_dec (+ x W_skip)``, with rows in raw
    units: an input scale or centring used in training is folded into the weights. Decoder rows have norm
    1, so a code is the length of its latent's share of the row.

    Parameters
    ----------
    W_enc_DL, b_enc_L, W_dec_LD, b_dec_D
        Weights; kept as float32 copies. A transcoder's decoder has a width of its own, that of its target.
    threshold
        θ >= 0, one number or one per latent.
    meta
        What is known of its making, JSON values: site, model, recipe, variant, k, …
    W_skip_DE
        What a transcoder takes straight from the rows it reads, [D, width of the target]; None: nothing.
    row_k
        Of the latents above θ, only so many of the largest of each row are active, >= 1; None: all. What a TopK
        dictionary from elsewhere means; dictionaries trained here have thresholds.

    Raises
    ------
    JobError
        ``dictionary-broken`` where shapes disagree, values are not finite, θ is negative or a decoder
        row is not of norm 1.
    """

    W_enc_DL: Tensor
    b_enc_L: Tensor  # noqa: N815 - the dimension suffix
    W_dec_LD: Tensor
    b_dec_D: Tensor  # noqa: N815 - the dimension suffix
    threshold: Tensor | float
    meta: Mapping[str, Any] = field(default_factory=dict)
    W_skip_DE: Tensor | None = None
    row_k: int | None = None

    _tensors: ClassVar = ("W_enc_DL", "b_enc_L", "W_dec_LD", "b_dec_D", "threshold")

    def _held(self) -> tuple[str, ...]:
        """Return the names of the tensors there are."""
        return (*self._tensors, *(("W_skip_DE",) if self.W_skip_DE is not None else ()))

    def __post_init__(self) -> None:
        for name in self._held():
            value = torch.as_tensor(getattr(self, name)).detach()
            object.__setattr__(self, name, value.to(torch.float32).contiguous().clone())
        object.__setattr__(self, "meta", json.loads(json.dumps(dict(self.meta))))
        if fault := self._fault():
            raise _broken(fault)

    def _fault(self) -> str:
        latents, out = self.W_dec_LD.shape if self.W_dec_LD.dim() == 2 else (0, 0)
        width = self.W_enc_DL.shape[0] if self.W_enc_DL.dim() == 2 else 0
        shapes: dict[str, tuple[tuple[int, ...], ...]] = {
            "W_dec_LD": ((latents, out),),
            "W_enc_DL": ((width, latents),),
            "b_enc_L": ((latents,),),
            "b_dec_D": ((out,),),
            "threshold": ((), (latents,)),
            "W_skip_DE": ((width, out),),
        }
        for name in self._held():
            tensor, allowed = getattr(self, name), shapes[name]
            if tuple(tensor.shape) not in allowed:
                return f"{name} has shape {tuple(tensor.shape)}, expected {allowed[-1]}"
            if not bool(torch.isfinite(tensor).all()):
                return f"{name} holds values that are not finite"
        if self.row_k is not None and self.row_k < 1:
            return f"row_k is {self.row_k}, below 1"
        if bool((self.theta < 0).any()):
            return f"the lowest threshold is {float(self.theta.min()):g}, below 0"
        off = (self.W_dec_LD.norm(dim=1) - 1).abs()
        if latents == 0 or float(off.max()) > UNIT_TOLERANCE:
            return (
                f"decoder rows are up to {float(off.max()) if latents else 1:.3g} away from norm 1"
            )
        return ""

    @property
    def theta(self) -> Tensor:
        """The threshold as a tensor, [] or [L]."""
        assert isinstance(self.threshold, Tensor)
        return self.threshold

    @property
    def width(self) -> int:
        """Values in a row that is read, D."""
        return int(self.W_enc_DL.shape[0])

    @property
    def out_width(self) -> int:
        """Values in a row that is rebuilt; the same as ``width`` unless this is a transcoder."""
        return int(self.b_dec_D.shape[0])

    @property
    def latents(self) -> int:
        """Number of latents, L."""
        return int(self.b_enc_L.shape[0])

    @cached_property
    def sha(self) -> str:
        """sha256, hexadecimal, of the two files in the order weights, card."""
        files = self.to_bytes()
        return hashlib.sha256(files[WEIGHTS_FILE] + files[CARD_FILE]).hexdigest()

    def to(self, device: str | torch.device) -> Codebook:
        """Return the same codebook with its weights on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in self._held()}
        return dataclasses.replace(self, **moved)

    def _rows(self, x_RD: Tensor | NDArray[Any]) -> Tensor:
        x = torch.as_tensor(x_RD)
        if x.dim() != 2 or x.shape[1] != self.width:
            raise InvalidInputError(
                f"rows to encode have shape {tuple(x.shape)}, the dictionary holds width {self.width}"
                f" ({self.latents} latents, site {self.meta.get('site', 'not stated')}). Nothing was"
                " encoded. Give rows [R, width] of the site this dictionary was trained on.",
                kind="width-mismatch",
            )
        return x.to(device=self.W_enc_DL.device)

    def blocks(self, x_RD: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, pre-activations, which of them are active), block by block."""
        step = max(1, BLOCK_BYTES // (4 * self.latents))
        for start in range(0, len(x_RD), step):
            pre_RL = torch.addmm(self.b_enc_L, x_RD[start : start + step].float(), self.W_enc_DL)
            active_RL = pre_RL > self.theta
            if self.row_k is not None and self.row_k < self.latents:
                top = pre_RL.topk(self.row_k, dim=1, sorted=False).indices
                active_RL &= torch.zeros_like(active_RL).scatter_(1, top, value=True)
            yield start, pre_RL, active_RL

    @torch.no_grad()
    def encode(self, x_RD: Tensor | NDArray[Any]) -> Codes:
        """Return the codes of rows [R, D] (any float dtype; computed in float32).

        Raises
        ------
        InvalidInputError
            ``width-mismatch``.
        """
        flat, values = [], []
        for start, pre_RL, active_RL in self.blocks(self._rows(x_RD)):
            found = positions(active_RL)
            values.append(pre_RL.flatten()[found].cpu().numpy())
            flat.append(found.cpu().numpy() + start * self.latents)
        pairs = np.concatenate(flat) if flat else np.empty(0, np.int64)
        row_index, latent = np.divmod(pairs, self.latents)
        value = np.concatenate(values) if values else np.empty(0, np.float32)
        return Codes(row_index, latent.astype(np.uint32), value)

    @torch.no_grad()
    def encode_dense(self, x_RD: Tensor | NDArray[Any]) -> Tensor:
        """Return the codes of rows [R, D] as a dense float32 tensor [R, L]; for few rows."""
        x = self._rows(x_RD)
        dense_RL = torch.zeros(len(x), self.latents, device=x.device)
        for start, pre_RL, active_RL in self.blocks(x):
            dense_RL[start : start + len(pre_RL)] = pre_RL * active_RL
        return dense_RL

    @torch.no_grad()
    def decode(self, codes: Codes, rows: int, x_RD: Tensor | NDArray[Any] | None = None) -> Tensor:
        """Return the rows that codes stand for, float32 [rows, out_width]; without codes, ``b_dec``.

        Parameters
        ----------
        x_RD
            The rows that were encoded; only a dictionary with a skip asks for them.

        Raises
        ------
        InvalidInputError
            ``no-rows-to-skip``: the dictionary has a skip and was given no rows.
        """
        device = self.W_dec_LD.device
        row_N = torch.tensor(codes.row_index, device=device)
        latent_N = torch.tensor(codes.latent.astype(np.int64), device=device)
        value_N = torch.tensor(codes.value, device=device)
        pattern = Pattern(row_N, latent_N, rows, self.latents)
        hat_RE = PlainCodeOps().gather_sum(pattern, value_N, self.W_dec_LD) + self.b_dec_D
        if self.W_skip_DE is None:
            return hat_RE
        if x_RD is None:
            raise InvalidInputError(
                f"codes of {rows} rows were to be decoded by a dictionary with a skip, which takes part of what it "
                "rebuilds from the rows themselves, and no rows were given. Nothing was decoded. Give the rows "
                "that were encoded too.",
                kind="no-rows-to-skip",
            )
        return hat_RE.addmm_(self._rows(x_RD).float(), self.W_skip_DE)

    def reconstruct(self, x_RD: Tensor | NDArray[Any]) -> Tensor:
        """Return ``x̂``, float32 [R, out_width]."""
        return self.decode(self.encode(x_RD), len(x_RD), x_RD)

    def to_bytes(self) -> dict[str, bytes]:
        """Return a dictionary's two files; equal codebooks give equal bytes."""
        weights = save_tensors({name: getattr(self, name).cpu() for name in self._held()})
        wider = self.W_skip_DE is not None or self.out_width != self.width
        more = {"width_out": self.out_width} if wider else {}
        if self.row_k is not None:
            more["row_k"] = self.row_k
        card = {
            "format": WIDER_FORMAT if more else FORMAT,
            **more,
            "latents": self.latents,
            "meta": self.meta,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "width": self.width,
        }
        text = json.dumps(card, sort_keys=True, indent=1, allow_nan=False)
        return {WEIGHTS_FILE: weights, CARD_FILE: text.encode()}

    @classmethod
    def from_bytes(cls, files: Mapping[str, bytes]) -> Codebook:
        """Undo ``to_bytes``.

        Raises
        ------
        JobError
            ``dictionary-broken`` where a file is missing, damaged or not the other one's.
        """
        if missing := sorted({WEIGHTS_FILE, CARD_FILE} - set(files)):
            raise _broken(f"{', '.join(missing)} is missing")
        try:
            card = json.loads(files[CARD_FILE])
            tensors = load_tensors(bytes(files[WEIGHTS_FILE]))
            if card["format"] not in {FORMAT, WIDER_FORMAT}:
                known = f"{FORMAT!r} and {WIDER_FORMAT!r}"
                raise _broken(f"{CARD_FILE} says format {card['format']!r}, this reads {known}")
            found = hashlib.sha256(files[WEIGHTS_FILE]).hexdigest()
            if found != card["weights_sha256"]:
                stated = str(card["weights_sha256"])[:12]
                raise _broken(f"{WEIGHTS_FILE} has sha256 {found[:12]}…, its card states {stated}…")
            held = {name: tensors[name] for name in cls._tensors}
            more = {"W_skip_DE": tensors.get("W_skip_DE"), "row_k": card.get("row_k")}
            return cls(**held, meta=card["meta"], **more)
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise _broken(
                f"its files could not be read ({type(error).__name__}: {error})"
            ) from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the two files into ``folder``, weights first; each appears whole or not at all."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, data in self.to_bytes().items():
            write_atomic(path / name, data)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Codebook:
        """Read what ``save`` wrote; raises as ``from_bytes`` does."""
        path = Path(folder)
        names = [name for name in (WEIGHTS_FILE, CARD_FILE) if (path / name).is_file()]
        return cls.from_bytes({name: (path / name).read_bytes() for name in names})


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _broken(fault: str) -> JobError:
    return JobError(
        f"a dictionary was asked for, but {fault}. Nothing was loaded and no file was changed. "
        "Train or export it again, or copy both of its files from an intact place.",
        kind="dictionary-broken",
    )
