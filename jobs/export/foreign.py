"""Dictionaries in other libraries' files: what a format does, and the arithmetic they share.

Dimensions: D width read, E width rebuilt, L latents.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from jobs.codebook import Codebook
from jobs.errors import JobError
from store.registry import Registry

FOREIGN: Registry = Registry("dictionary format", "jobs.export.dictionaries")


class Foreign(Protocol):
    """One library's files of one dictionary, in a folder."""

    def write(self, book: Codebook, folder: Path) -> list[str]:
        """Write the files; returns their names. The library's own loader gives the same codes and reconstruction."""
        ...

    def read(self, folder: Path) -> Codebook:
        """Read the files; the result gives the same reconstruction as the library's own loader.

        Raises
        ------
        JobError
            ``foreign-broken``, ``foreign-unknown``: see ``refused`` and ``unknown``.
        """
        ...


def unit_rows(
    *,
    encoder_DL: Tensor,
    bias_L: Tensor,
    decoder_LE: Tensor,
    bias_E: Tensor,
    threshold: Tensor | float = 0.0,
    centred: bool = False,
    meta: Mapping[str, Any],
    skip_DE: Tensor | None = None,
    row_k: int | None = None,
) -> Codebook:
    """Return the frozen form of an affine encoder, a threshold and a decoder, in float64 on the way.

    Parameters
    ----------
    threshold
        θ on the pre-activations, one number or [L]; below 0 it is 0, as the codes are positive parts.
    centred
        Whether ``bias_E`` is taken from rows before they are encoded.
    row_k
        Latents kept of each row. The order of codes must survive, so decoder rows must be of one norm.
    """
    encoder_DL, decoder_LE = encoder_DL.double(), decoder_LE.double()
    bias_L, bias_E = bias_L.double(), bias_E.double()
    if centred:
        bias_L = bias_L - bias_E @ encoder_DL
    n_L = decoder_LE.norm(dim=1)
    silent_L = n_L == 0
    if row_k is not None and float(n_L.max()) > 1.001 * float(n_L.min()):
        raise JobError(
            f"a dictionary that keeps {row_k} latents a row was to be imported, but its decoder rows have norms from "
            f"{float(n_L.min()):.3g} to {float(n_L.max()):.3g}, and codes in units of what they write would be ordered "
            "otherwise. Nothing was written. Normalise its decoder where it was trained.",
            kind="foreign-unknown",
        )
    unit_LE = decoder_LE / torch.where(silent_L, 1.0, n_L).unsqueeze(1)
    unit_LE[silent_L, 0] = 1.0
    theta = torch.as_tensor(threshold).double().clamp(min=0)
    theta = theta * n_L if theta.dim() or bool((n_L - 1).abs().max() > 1e-6) else theta
    return Codebook(
        W_enc_DL=encoder_DL * n_L,
        b_enc_L=bias_L * n_L,
        W_dec_LD=unit_LE,
        b_dec_D=bias_E,
        threshold=theta,
        meta=meta,
        W_skip_DE=skip_DE,
        row_k=row_k,
    )


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return the JSON object in a file, or raise ``foreign-broken``."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise refused(path.parent, what, f"{path.name} could not be read ({error})") from error
    if not isinstance(found, dict):
        raise refused(path.parent, what, f"{path.name} is no JSON object")
    return found


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Return the tensors of a file, or raise ``foreign-broken``."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise refused(path.parent, what, f"{path.name} could not be read ({error})") from error
    return found


def only_known(
    found: Iterable[str], known: Iterable[str], optional: Iterable[str], folder: Path, what: str
) -> None:
    """Raise ``foreign-unknown`` for tensors that are not known, ``foreign-broken`` where one is missing."""
    found, known, optional = set(found), set(known), set(optional)
    if more := sorted(found - known - optional):
        raise unknown(
            folder, what, f"it holds {', '.join(more)}, which this import knows nothing of"
        )
    if less := sorted(known - found):
        raise refused(folder, what, f"{', '.join(less)} is missing")


def refused(folder: Path, what: str, fault: str) -> JobError:
    """Return the error for files that are damaged or not what they should be."""
    return JobError(
        f"a {what} dictionary was to be imported from {folder}, but {fault}. Nothing was written. Give the folder as the "
        "library wrote it.",
        kind="foreign-broken",
    )


def unknown(folder: Path, what: str, fault: str) -> JobError:
    """Return the error for what an import does not know, and so might get wrong."""
    return JobError(
        f"a {what} dictionary was to be imported from {folder}, but {fault}. Nothing was written, so that no figure is of "
        "another function than the library's. Export it there in a form without it.",
        kind="foreign-unknown",
    )


def positive(book: Codebook, what: str) -> None:
    """Refuse to write a dictionary that keeps the largest of each row in a format of thresholds."""
    if book.row_k is not None:
        raise JobError(
            f"a dictionary that keeps {book.row_k} latents a row was to be written as {what}, whose dictionaries have "
            "thresholds. Nothing was written. `actlake export sparsify` writes it.",
            kind="foreign-unknown",
        )
