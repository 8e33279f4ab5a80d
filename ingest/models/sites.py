"""Site names: patterns, shares and other projects' names become canonical names.

Everything here is a function of names; no model runs. A name that means nothing is refused with
the known ones listed, never guessed at.
"""

from __future__ import annotations

import itertools
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Protocol

from ingest.errors import ModelError, SiteError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ingest.models.contract import AttentionSpec, SiteInfo

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_SET = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SHARE = re.compile(r"@(\d+(?:\.\d+)?)%")

# TransformerLens' names, by ours below `blocks.{l}`. Its `hook_mlp_in` is before the norm. For
# encoders it puts `hook_resid_mid` and `hook_resid_post` before the norms and calls what leaves
# the block `hook_normalized_resid_post`; here all of them name the place, after its norm.
_LENS_BLOCK: Mapping[str, tuple[str, ...]] = {
    "resid_pre": ("hook_resid_pre",),
    "resid_mid": ("hook_resid_mid", "hook_mlp_in"),
    "resid_post": ("hook_resid_post", "hook_normalized_resid_post"),
    "attn.q": ("attn.hook_q",),
    "attn.k": ("attn.hook_k",),
    "attn.v": ("attn.hook_v",),
    "attn.rot_q": ("attn.hook_rot_q",),
    "attn.rot_k": ("attn.hook_rot_k",),
    "attn.z": ("attn.hook_z",),
    "attn.out": ("hook_attn_out",),
    "mlp.pre": ("mlp.hook_pre",),
    "mlp.pre_linear": ("mlp.hook_pre_linear",),
    "mlp.post": ("mlp.hook_post",),
    "mlp.out": ("hook_mlp_out",),
}
_LENS_WHOLE: Mapping[str, tuple[str, ...]] = {
    "embed": ("hook_embed", "embed.hook_embed"),
    "final.normalized": ("ln_final.hook_normalized",),
}


def hook_name(site: str) -> str:
    """Return TransformerLens' name of a site, or the site's own where it has none; a group before it is left out."""
    bare = site.rpartition(":")[2]
    if bare in _LENS_WHOLE:
        return _LENS_WHOLE[bare][0]
    block = _BLOCK.fullmatch(bare)
    if block is None or block[2] not in _LENS_BLOCK:
        return bare
    return f"blocks.{block[1]}.{_LENS_BLOCK[block[2]][0]}"


# More names than this come from a mistyped range, not from a wish.
_MAX_EXPANSIONS = 100_000


class _Sited(Protocol):
    @property
    def family(self) -> str: ...

    def sites(self) -> dict[str, SiteInfo]: ...

    def aliases(self) -> dict[str, tuple[str, ...]]: ...


class _Attending(Protocol):
    def attention(self, layer: int, /) -> AttentionSpec: ...


def attention_sites(model: _Attending, layer: int) -> tuple[str, str, str, str]:
    """Return the sites of the q, k and v that attention of a block sees, and of z, what comes of them.

    q and k are ``attn.rot_q`` and ``attn.rot_k`` where the model turns them, else ``attn.q`` and ``attn.k``.

    Parameters
    ----------
    model
        An adapter, or anything else that gives a block's `AttentionSpec`.

    Raises
    ------
    SiteError
        The model has no such block.
    """
    turned = "rot_" if model.attention(layer).rotary is not None else ""
    block = f"blocks.{layer}.attn"
    return f"{block}.{turned}q", f"{block}.{turned}k", f"{block}.v", f"{block}.z"


def resolve_sites(patterns: Sequence[str], adapter: _Sited) -> list[str]:
    """Return the canonical names that ``patterns`` stand for, in order of depth, each once.

    A pattern is a name of ours (``blocks.3.resid_post``), of TransformerLens
    (``blocks.3.hook_resid_post``) or of a Hugging Face module, meaning its output
    (``transformer.h.3``); in it ``{3,5}`` and ``{0..5}`` are sets, ``*`` is any run of
    characters, and ``@50%`` is the block that share of the way up: block ``floor(L * 50 / 100)``,
    at most the last. ``@50%`` alone is that block's ``resid_post``.

    Raises
    ------
    SiteError
        ``unknown-site``, with the known sites listed.
    """
    infos = adapter.sites()
    names = _all_names(infos, adapter.aliases())
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for name in _expanded(pattern, _layers(infos), adapter):
            hits = _matching(name, names)
            if not hits:
                raise unknown_site(pattern, adapter)
            found.update(hits)
    return sorted(found, key=lambda name: infos[name].depth)


def unknown_site(pattern: str, adapter: _Sited) -> SiteError:
    """Return the error that says ``pattern`` names no site, and which there are."""
    infos = adapter.sites()
    return SiteError(
        f"{pattern!r} names none of the {len(infos)} sites of this {adapter.family} model. "
        f"Nothing was run. Known: {', '.join(compact(infos))}; sets {{0,2}}, *, shares @50%, "
        "TransformerLens and Hugging Face module names are understood too.",
        kind="unknown-site",
        site=pattern,
    )


def compact(names: Iterable[str]) -> list[str]:
    """Return the names with the blocks of each gathered: ``blocks.{0..5}.resid_post``."""
    numbers: dict[str, list[int]] = {}
    for name in names:
        match = _BLOCK.fullmatch(name)
        if match:
            numbers.setdefault(f"blocks.*.{match[2]}", []).append(int(match[1]))
        else:
            numbers[name] = []
    return [name.replace("*", _as_set(found), 1) for name, found in numbers.items()]


def _as_set(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(low) if low == high else f"{low}..{high}" for low, high in runs]
    return texts[0] if texts and ",".join(texts).isdigit() else f"{{{','.join(texts)}}}"


def _layers(names: Iterable[str]) -> int:
    return max((int(m[1]) + 1 for m in map(_BLOCK.fullmatch, names) if m), default=0)


def _all_names(
    infos: Mapping[str, SiteInfo], aliases: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    names = dict(aliases)
    for name in infos:
        match = _BLOCK.fullmatch(name)
        lens = _LENS_BLOCK.get(match[2], ()) if match else _LENS_WHOLE.get(name, ())
        for other in lens:
            names[f"blocks.{match[1]}.{other}" if match else other] = (name,)
    return names | {name: (name,) for name in infos}


def _matching(pattern: str, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    if "*" not in pattern:
        return names.get(pattern, ())
    wild = re.compile(".*".join(map(re.escape, pattern.split("*"))))
    return tuple(itertools.chain.from_iterable(s for n, s in names.items() if wild.fullmatch(n)))


def _expanded(pattern: str, layers: int, adapter: _Sited) -> list[str]:
    def block(share: re.Match[str]) -> str:
        percent = Fraction(share[1])
        if percent > 100 or layers == 0:
            raise unknown_site(pattern, adapter)
        return str(min(layers - 1, int(percent * layers / 100)))

    done: list[str] = []
    todo = [pattern.strip()]
    while todo:
        name = todo.pop()
        match = _SET.search(name)
        if match is None:
            whole = f"blocks.{name}.resid_post" if _SHARE.fullmatch(name) else name
            done.append(_SHARE.sub(block, whole))
            continue
        members = [member for text in match[1].split(",") for member in _members(text.strip())]
        if len(todo) + len(done) + len(members) > _MAX_EXPANSIONS:
            raise unknown_site(pattern, adapter)
        todo.extend(f"{name[: match.start()]}{member}{name[match.end() :]}" for member in members)
    return done


def _members(text: str) -> Iterable[str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        return [text]
    low, high = int(match[1]), int(match[2])
    return map(str, range(low, min(high, low + _MAX_EXPANSIONS) + 1))


def no_attention(family: str) -> ModelError:
    """Return the error for a question about attention of a model that has none."""
    return ModelError(
        f"how the {family} model attends was asked for, and it has no attention: it mixes positions otherwise. Nothing was "
        "run. Ask for statistics that read the stream, or use another model.",
        kind="no-attention",
    )


def broken_site(family: str, site: str, found: str) -> ModelError:
    """Return the error for a site that a forward does not pass as its family declares."""
    return ModelError(
        f"{family} declares the site {site}, but {found}. Nothing was kept. This version of "
        "transformers lays the model out differently, or the model has an unusual config.",
        kind="site-broken",
        site=site,
    )
