"""Dictionaries of attention outputs: which heads and which source tokens a latent is made of.

Rows are all heads' outputs side by side before W_O, ``z_h[t] = Σ_s A_h[t, s] v_h[s]``, so a pre-activation splits exactly,
over heads and over source tokens. Gates applied to z afterwards break that; sites ``attn.z`` here are before them.

Dimensions: T targets, S sources, H heads, G heads with keys and values of their own, d width of a head, L latents.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jobs.errors import JobError

if TYPE_CHECKING:
    from torch import Tensor

    from jobs.codebook import Codebook

Array = np.ndarray[Any, np.dtype[Any]]


def decoder_shares(book: Codebook, heads: int) -> Tensor:
    """Return how much of each latent's decoder row lies in each head, float32 [L, H]; rows add up to 1.

    ``‖d_i[h]‖ / Σ_h' ‖d_i[h']‖``. Source: Kissane et al., "Interpreting Attention Layer Outputs with Sparse
    Autoencoders" (2406.17759), section 4.
    """
    norm_LH = _by_head(book.W_dec_LD, heads).norm(dim=2)
    share_LH: Tensor = norm_LH / norm_LH.sum(dim=1, keepdim=True)
    return share_LH


def by_head(book: Codebook, z_THd: Tensor, latent: int) -> Tensor:
    """Return what each head adds to a latent's pre-activation, ``z_h[t] · e_i[h]``, float32 [T, H].

    Its sum over heads is the pre-activation less ``b_enc``, with whatever the dictionary was centred by folded into that.
    """
    encoder_Hd = _by_head(book.W_enc_DL.t(), z_THd.shape[1])[latent]
    return (z_THd.float() * encoder_Hd).sum(dim=2)


def by_source(book: Codebook, pattern_HTS: Tensor, v_SGd: Tensor, latent: int) -> Tensor:
    """Return what each source token adds to a latent's pre-activation, over all heads, float32 [T, S].

    ``Σ_h A_h[t, s] (v_h[s] · e_i[h])``: direct feature attribution. Its sum over sources is the pre-activation less ``b_enc``.

    Parameters
    ----------
    pattern_HTS
        Attention weights after the softmax.
    v_SGd
        Values; where several heads share one, it is taken for each.

    Notes
    -----
    Source: 2406.17759, section 4.
    """
    heads = pattern_HTS.shape[0]
    values_SHd = v_SGd.float().repeat_interleave(heads // v_SGd.shape[1], dim=1)
    weight_SH = by_head(book, values_SHd, latent)
    return (pattern_HTS.float() * weight_SH.t()[:, None, :]).sum(dim=0)


def heads_table(book: Codebook, heads: int) -> dict[str, Array]:
    """Return the table (latent, head, share) of ``decoder_shares``."""
    share_LH = decoder_shares(book, heads).cpu().numpy()
    latent, head = np.indices(share_LH.shape)
    return {"latent": latent.ravel(), "head": head.ravel(), "share": share_LH.ravel()}


def _by_head(rows_LD: Tensor, heads: int) -> Tensor:
    if rows_LD.shape[1] % heads:
        raise JobError(
            f"rows of width {rows_LD.shape[1]} were to be split over {heads} heads, which do not divide it. Nothing was "
            "computed. Give a dictionary of attn.z and the number of its heads.",
            kind="width-mismatch",
        )
    return rows_LD.reshape(len(rows_LD), heads, -1)
