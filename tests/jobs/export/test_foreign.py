"""Other libraries' dictionary files, against those libraries' formulas written out here; the libraries themselves are
asked in ``tests/peers``."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from jobs.codebook import Codebook
from jobs.errors import JobError
from jobs.export.foreign import FOREIGN

D, L, K = 10, 24, 4


def weights(seed=0, out=D):
    g = torch.Generator().manual_seed(seed)

    def some(*shape):
        return torch.randn(*shape, generator=g)

    return {
        "enc": some(D, L),
        "dec": torch.nn.functional.normalize(some(L, out), dim=1),
        "b_enc": 0.3 * some(L),
        "b_dec": some(out),
        "theta": some(L).abs() * 0.5,
        "r": 0.2 * some(L),
        "b_gate": 0.3 * some(L),
        "skip": some(out, D),
        "norms": 0.5 + torch.rand(L, generator=g),
    }


def rows(count=200):
    return torch.randn(count, D, generator=torch.Generator().manual_seed(9))


def top(pre, k):
    best = torch.relu(pre).topk(k, dim=1)
    return torch.zeros_like(pre).scatter(1, best.indices, best.values)


def saelens(folder, architecture, w, **config):
    """Write a SAELens folder and return its function."""
    transcodes = architecture.endswith("transcoder")
    centred = not transcodes
    dec = w["dec"] * (w["norms"].unsqueeze(1) if config.pop("scaled", False) else 1)
    tensors = {"W_enc": w["enc"], "W_dec": dec, "b_dec": w["b_dec"]}
    if architecture == "gated":
        tensors |= {"b_gate": w["b_gate"], "b_mag": w["b_enc"], "r_mag": w["r"]}
    else:
        tensors["b_enc"] = w["b_enc"]
    if "jumprelu" in architecture:
        tensors["threshold"] = w["theta"]
    if "skip" in architecture:
        tensors["W_skip"] = w["skip"]
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae_weights.safetensors")
    told = {
        "d_in": D,
        "d_sae": L,
        "architecture": architecture,
        "apply_b_dec_to_input": centred,
        "metadata": {"sae_lens_version": "6.54.0", "hook_name": "blocks.1.hook_resid_post"},
        **config,
    }
    (folder / "cfg.json").write_text(json.dumps(told))

    def function(x):
        read = x - w["b_dec"] if centred else x
        pre = read @ w["enc"] + (0 if architecture == "gated" else w["b_enc"])
        if architecture == "gated":
            code = torch.relu(pre * w["r"].exp() + w["b_enc"]) * (pre + w["b_gate"] > 0)
        elif architecture == "topk":
            norm = dec.norm(dim=1) if config.get("rescale_acts_by_decoder_norm") else torch.ones(L)
            code = top(pre * norm, config["k"]) / norm
        elif "jumprelu" in architecture:
            code = torch.relu(pre) * (pre > w["theta"])
        else:
            code = torch.relu(pre)
        skip = x @ w["skip"].t() if "skip" in architecture else 0
        return code @ dec + w["b_dec"] + skip

    return function


SAELENS = {
    "standard": {"scaled": True},
    "gated": {"scaled": True},
    "topk": {"k": K},
    "topk rescaled": {"k": K, "rescale_acts_by_decoder_norm": True, "scaled": True},
    "jumprelu": {"scaled": True},
    "transcoder": {"scaled": True},
    "skip_transcoder": {"scaled": True},
    "jumprelu_transcoder": {},
    "jumprelu_skip_transcoder": {},
}


@pytest.mark.parametrize("case", SAELENS)
def test_saelens_architectures_are_read(case, tmp_path):
    out = 7 if "transcoder" in case and "skip" not in case else D
    function = saelens(tmp_path, case.partition(" ")[0], weights(out=out), **SAELENS[case])
    book = FOREIGN.get("saelens")().read(tmp_path)
    x = rows()
    assert torch.allclose(book.reconstruct(x), function(x), atol=1e-5)
    assert book.meta["hook_name"] == "blocks.1.hook_resid_post"


def learning(folder, name, w):
    """Write a dictionary_learning folder and return its function."""
    enc, dec, theta = w["enc"], w["dec"], torch.tensor(0.4)
    linear = {"encoder.weight": enc.t(), "encoder.bias": w["b_enc"], "decoder.weight": dec.t()}
    matrices = {"W_enc": enc, "b_enc": w["b_enc"], "W_dec": dec, "b_dec": w["b_dec"]}
    scalars = {"k": torch.tensor(K), "threshold": theta}
    state = {
        "AutoEncoder": {**linear, "bias": w["b_dec"]},
        "AutoEncoderNew": {**linear, "decoder.bias": w["b_dec"]},
        "AutoEncoderTopK": {**linear, "b_dec": w["b_dec"], **scalars},
        "BatchTopKSAE": {**linear, "b_dec": w["b_dec"], **scalars},
        "MatryoshkaBatchTopKSAE": {**matrices, **scalars, "group_sizes": torch.tensor([8, 16])},
        "JumpReluAutoEncoder": {**matrices, "threshold": w["theta"]},
        "GatedAutoEncoder": {
            "encoder.weight": enc.t(),
            "decoder.weight": dec.t(),
            "decoder_bias": w["b_dec"],
            "r_mag": w["r"],
            "gate_bias": w["b_gate"],
            "mag_bias": w["b_enc"],
        },
    }[name]
    torch.save({k: v.contiguous() for k, v in state.items()}, folder / "ae.pt")
    config = {"trainer": {"dict_class": name, "k": K, "layer": 3}, "buffer": {}}
    (folder / "config.json").write_text(json.dumps(config))

    def function(x):
        centred = name not in {"AutoEncoderNew", "JumpReluAutoEncoder"}
        pre = (x - w["b_dec"] if centred else x) @ enc
        if name == "GatedAutoEncoder":
            code = torch.relu(pre * w["r"].exp() + w["b_enc"]) * (pre + w["b_gate"] > 0)
        else:
            pre = pre + w["b_enc"]
            code = torch.relu(pre)
            if name == "AutoEncoderTopK":
                code = top(pre, K)
            elif name == "JumpReluAutoEncoder":
                code = code * (pre > w["theta"])
            elif "BatchTopK" in name:
                code = code * (code > theta)
        return code @ dec + w["b_dec"]

    return function


LEARNING = (
    "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
    "JumpReluAutoEncoder", "GatedAutoEncoder",
)  # fmt: skip


@pytest.mark.parametrize("name", LEARNING)
def test_dictionary_learning_classes_are_read(name, tmp_path):
    function = learning(tmp_path, name, weights())
    book = FOREIGN.get("dictionary_learning")().read(tmp_path)
    x = rows()
    assert torch.allclose(book.reconstruct(x), function(x), atol=1e-5)
    assert book.meta["layer"] == 3


def sparsify(folder, w, *, transcode=False, skip=False):
    tensors = {
        "encoder.weight": w["enc"].t(),
        "encoder.bias": w["b_enc"],
        "W_dec": w["dec"],
        "b_dec": w["b_dec"],
    }
    if skip:
        tensors["W_skip"] = w["skip"]
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "sae.safetensors")
    config = {
        "activation": "topk",
        "k": K,
        "d_in": D,
        "transcode": transcode,
        "skip_connection": skip,
    }
    (folder / "cfg.json").write_text(json.dumps(config))

    def function(x):
        pre = (x if transcode else x - w["b_dec"]) @ w["enc"] + w["b_enc"]
        return top(pre, K) @ w["dec"] + w["b_dec"] + (x @ w["skip"].t() if skip else 0)

    return function


@pytest.mark.parametrize(
    "options", [{}, {"transcode": True}, {"transcode": True, "skip": True}], ids=str
)
def test_sparsify_dictionaries_are_read(options, tmp_path):
    function = sparsify(tmp_path, weights(), **options)
    book = FOREIGN.get("sparsify")().read(tmp_path)
    assert book.row_k == K
    x = rows()
    assert torch.allclose(book.reconstruct(x), function(x), atol=1e-5)


def book_of(*, out=D, skip=False, per_latent=True, **options):
    w = weights(3, out=out)
    meta = {
        "site": "acts:blocks.2.mlp.in",
        "k": K,
        "targets": ["acts:blocks.2.mlp.out"] if skip or out != D else [],
    }
    return Codebook(
        w["enc"], w["b_enc"], w["dec"], w["b_dec"], w["theta"] if per_latent else 0.4, meta,
        W_skip_DE=w["skip"].t() if skip else None, **options,
    )  # fmt: skip


WRITTEN = {
    ("saelens", "plain"): {},
    ("saelens", "one threshold"): {"per_latent": False},
    ("saelens", "transcoder"): {"out": 7},
    ("saelens", "skip"): {"skip": True},
    ("dictionary_learning", "plain"): {},
    ("dictionary_learning", "one threshold"): {"per_latent": False},
}


@pytest.mark.parametrize("case", WRITTEN, ids=" ".join)
def test_what_is_written_is_read_as_the_same_function(case, tmp_path):
    book = book_of(**WRITTEN[case])
    form = FOREIGN.get(case[0])()
    form.write(book, tmp_path)
    found, x = form.read(tmp_path), rows()
    assert torch.allclose(found.encode_dense(x), book.encode_dense(x), atol=1e-6)
    assert torch.allclose(found.reconstruct(x), book.reconstruct(x), atol=1e-6)


@pytest.mark.parametrize("skip", [False, True])
def test_sparsify_gets_the_largest_of_each_row(skip, tmp_path):
    book = book_of(skip=skip)
    FOREIGN.get("sparsify")().write(book, tmp_path)
    import dataclasses

    expected = dataclasses.replace(book, threshold=0.0, row_k=K)
    found, x = FOREIGN.get("sparsify")().read(tmp_path), rows()
    assert torch.allclose(found.reconstruct(x), expected.reconstruct(x), atol=1e-5)


def test_saelens_files_say_which_hook_they_are_of(tmp_path):
    FOREIGN.get("saelens")().write(book_of(out=7), tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["metadata"]["hook_name_out"] == "blocks.2.hook_mlp_out"
    assert config["metadata"]["hook_name"] == "blocks.2.mlp.in"  # that library has no name for it
    assert config["architecture"] == "jumprelu_transcoder"


class Evil:
    def __reduce__(self):
        return (print, ("run",))


def _with_code(folder):
    learning(folder, "AutoEncoder", weights())
    (folder / "ae.pt").write_bytes(pickle.dumps({"bias": Evil()}))


def _with_code_in_zip(folder):
    learning(folder, "AutoEncoder", weights())
    torch.save({"bias": Evil()}, folder / "ae.pt")


def _unknown_class(folder):
    learning(folder, "AutoEncoder", weights())
    (folder / "config.json").write_text('{"trainer": {"dict_class": "Mine"}}')


def _unknown_tensor(folder):
    saelens(folder, "standard", weights())
    save_file(
        {"W_enc": torch.ones(2), "scaling": torch.ones(2)}, folder / "sae_weights.safetensors"
    )


def _missing_tensor(folder):
    saelens(folder, "standard", weights())
    save_file({"W_enc": torch.ones(2)}, folder / "sae_weights.safetensors")


def _normalised(folder):
    saelens(folder, "standard", weights(), normalize_activations="layer_norm")


def _uneven_topk(folder):
    saelens(folder, "topk", weights(), k=K, scaled=True)


def _groupmax(folder):
    sparsify(folder, weights())
    (folder / "cfg.json").write_text('{"activation": "groupmax", "k": 4}')


def _cut(folder):
    sparsify(folder, weights())
    file = folder / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _no_json(folder):
    (folder / "cfg.json").write_text("[1]")


FAULTS = {
    "pickled code": ("dictionary_learning", _with_code, "foreign-unknown.*never run"),
    "pickled code in a torch file": (
        "dictionary_learning",
        _with_code_in_zip,
        "foreign-unknown.*never run",
    ),
    "a class of its own": ("dictionary_learning", _unknown_class, "foreign-unknown.*Mine"),
    "a tensor nobody knows": ("saelens", _unknown_tensor, "foreign-unknown.*scaling"),
    "a tensor missing": ("saelens", _missing_tensor, "foreign-broken.*W_dec"),
    "rows normalised one by one": ("saelens", _normalised, "foreign-unknown.*layer_norm"),
    "codes ordered otherwise": ("saelens", _uneven_topk, "foreign-unknown.*norms"),
    "another activation": ("sparsify", _groupmax, "foreign-unknown.*groupmax"),
    "cut short": ("sparsify", _cut, "foreign-broken"),
    "nothing there": ("sparsify", lambda folder: None, "foreign-broken.*cfg.json"),
    "no object": ("saelens", _no_json, "foreign-broken.*no JSON object"),
}


@pytest.mark.parametrize("case", FAULTS.values(), ids=list(FAULTS))
def test_what_cannot_be_read_rightly_is_refused(case, tmp_path, capsys):
    kind, spoil, expected = case
    spoil(tmp_path)
    with pytest.raises(JobError, match=expected):
        FOREIGN.get(kind)().read(tmp_path)
    assert "run" not in capsys.readouterr().out.split()


REFUSED = {
    "largest of each row, as thresholds": ("saelens", {"row_k": 3}),
    "a transcoder where there are none": ("dictionary_learning", {"out": 7}),
    "two widths where there is one": ("sparsify", {"out": 7}),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=list(REFUSED))
def test_what_a_format_cannot_say_is_not_written(case, tmp_path):
    kind, options = case
    with pytest.raises(JobError, match=r"foreign-unknown.*actlake export"):
        FOREIGN.get(kind)().write(book_of(**options), tmp_path / "out")
    assert not (tmp_path / "out").exists()
