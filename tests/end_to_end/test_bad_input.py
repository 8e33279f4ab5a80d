"""Bad input: exit code ≠ 0, one message that says what to do, no traceback, the store unchanged and readable."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import store
from store.layout import ALIGN

SITE = "blocks.1.resid_post"


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _shard(url: Path, part: int) -> Path:
    opened = store.open(url)
    return url / opened.view.commit("acts", part).prefix / SITE / "c" / "0" / "0"


class Case:
    """A bad command: how to spoil things, what to run, the kind of error and words its message must hold."""

    def __init__(self, name, kind, words, *, spoil=None, says=(), damages=False, code=1):
        self.name, self.kind, self.words, self.spoil = name, kind, words, spoil
        self.says, self.damages, self.code = says, damages, code


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def _broken_model(s):
    shutil.copytree(s.model, s.tmp / "broken")
    weights = s.tmp / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def _undecodable(s):
    _write(s.tmp / "latin" / "bad.txt", b"caf\xe9 au lait")


def _newer(s):
    path = s.url / "store.json"
    record = json.loads(path.read_bytes())
    record.pop("self")
    record["v"] = 2
    from store.records import canonical, sha256

    path.write_bytes(canonical({**record, "self": sha256(canonical(record))}))


def _truncate(s):
    path = _shard(s.url, 1)
    path.write_bytes(path.read_bytes()[:-5000])


def _empty(s):
    _shard(s.url, 1).write_bytes(b"")


def _flip(s):
    path = _shard(s.url, 1)
    data = bytearray(path.read_bytes())
    data[ALIGN + 77] ^= 0x10
    path.write_bytes(bytes(data))


def _delete(s):
    _shard(s.url, 1).unlink()


def _swap(s):
    shutil.copyfile(_shard(s.url, 0), _shard(s.url, 1))


def _other_width(s):
    import torch

    from jobs.codebook import Codebook

    torch.manual_seed(0)
    dec = torch.nn.functional.normalize(torch.randn(16, 48), dim=1)
    Codebook(dec.T, torch.zeros(16), dec, torch.zeros(48), 0.1, {"site": f"acts:{SITE}"}).save(
        s.tmp / "d"
    )


def _unwritable(s):
    _write(s.tmp / "file", "not a folder")


INGEST = [
    "ingest",
    "--model",
    "{model}",
    "--corpus",
    "{corpus}",
    "--context",
    "32",
    "--part-rows",
    "512",
]
NEW = [*INGEST, "--out", "{tmp}/new", "--sites", SITE]
AGAIN = [*INGEST, "--out", "{url}", "--dtype", "bfloat16"]
TRAIN = ["train", "{url}", "--site", SITE, "--out", "{tmp}/r", "--latents", "64", "--k", "4"]
TRAIN += ["--batch-rows", "256", "--rows", "1024"]

CASES = [
    Case("model missing", "model-not-found", ["{model}", "{tmp}/nowhere", *NEW], says=["nowhere"]),
    Case("model broken", "model-broken", ["{model}", "{tmp}/broken", *NEW], spoil=_broken_model),
    Case("site unknown", "unknown-site", [*INGEST, "--out", "{tmp}/new", "--sites", "blocks.9.resid_post"],
         says=["blocks.", "resid_post", "mlp"]),
    Case("corpus missing", "corpus-missing", ["{corpus}", "{tmp}/nowhere", *NEW], says=["nowhere"]),
    Case("corpus empty", "corpus-empty", ["{corpus}", "{tmp}", *NEW]),
    Case("corpus undecodable", "corpus-undecodable", ["{corpus}", "{tmp}/latin", *NEW],
         spoil=_undecodable, says=["bad.txt", "byte 3"]),
    Case("context too long", "context-too-long", ["32", "4096", *NEW], says=["4096", "64"]),
    Case("group of another recipe", "group-recipe", [*AGAIN, "--sites", "blocks.0.resid_post"],
         says=["acts", "sites"]),
    Case("tokens of another recipe", "group-recipe", ["32", "16", *AGAIN, "--sites", SITE],
         says=["tokens", "context"]),
    Case("store newer", "unsupported-version", TRAIN, spoil=_newer, says=["version 2", "pgrade"]),
    Case("shard truncated", "object-size", TRAIN, spoil=_truncate, says=["part 1"], damages=True),
    Case("shard empty", "object-size", TRAIN, spoil=_empty, says=["part 1", "0 bytes"], damages=True),
    Case("byte flipped", "chunk-damaged", TRAIN, spoil=_flip, says=["part 1", "chunk 0"], damages=True),
    Case("shard deleted", "object-missing", TRAIN, spoil=_delete, says=["part 1"], damages=True),
    Case("shard of another part", "foreign-shard", TRAIN, spoil=_swap, says=["part 1"], damages=True),
    Case("folder unwritable", "not-permitted", [*INGEST, "--out", "{tmp}/file/s", "--sites", SITE],
         spoil=_unwritable),
    Case("k larger than the latents", "k-too-large", ["4", "65", *TRAIN], says=["65", "64"]),
    Case("dictionary of another width", "width-mismatch", ["encode", "{tmp}/d", "--on", "{url}"],
         spoil=_other_width, says=["48", "32"]),
    Case("column missing", "column-missing", [SITE, "blocks.0.mlp.post", *TRAIN],
         says=["actlake ingest --into", "blocks.0.mlp.post"]),
    Case("store missing", "store-missing", ["inspect", "{tmp}/nothing"], says=["nothing"]),
    Case("verb unknown", "unknown-name", ["brew"], says=["demo", "ingest"], code=2),
    Case("source unknown", "unknown-name", ["ingest", "--source", "tape", "--out", "{tmp}/new"],
         says=["synthetic", "jsonl"]),
    Case("neither out nor into", "usage", INGEST, says=["--out", "--into"], code=2),
    Case("device unknown", "missing-device", [*NEW, "--device", "foo"], says=["foo", "cpu"]),
    Case("batch beyond memory", "over-budget", [*NEW, "--batch", "1000000000"], says=["GB"], code=3),
    Case("latents beyond memory", "over-budget", ["64", "1G", *TRAIN], says=["GB"], code=3),
    Case("gradient by no rule", "unknown-name", [*NEW, "--gradient", "magic"], says=["exact", "relp"]),
    Case("gradient of what needs answers", "metric-needs",
         [*NEW, "--gradient", "exact", "--metric", "logit_diff"], says=["nll"]),
    Case("metric of nothing", "usage", [*NEW, "--metric", "nll"], says=["--gradient"], code=2),
    Case("gradient without a model", "usage",
         ["ingest", "--source", "synthetic", "--rows", "512", "--out", "{tmp}/new", "--gradient", "exact"],
         says=["without one"], code=2),
    Case("files for a source that reads none", "usage",
         ["ingest", "--source", "induction", "--model", "{model}", "--corpus", "{tmp}", "--out", "{tmp}/new"],
         says=["reads no files"], code=2),
    Case("empty name", "bad-config", [*INGEST, "--out", ""], says=["out"], code=2),
    Case("flags that into ignores", "usage",
         ["ingest", "--into", "{url}", "--model", "{model}", "--group", "g", "--rows", "3"],
         says=["rows"], code=2),
    Case("into without a group", "usage", ["ingest", "--into", "{url}", "--model", "{model}"],
         says=["--group"], code=2),
    Case("a store that would not last", "usage", ["{tmp}/new", "memory://x", *NEW], code=2),
    Case("demo grid", "usage", ["demo", "--k", "2,3", "--out", "{tmp}/new"], says=["k"], code=2),
    Case("demo k too large", "k-too-large",
         ["demo", "--latents", "8", "--k", "9", "--out", "{tmp}/new"], says=["9"]),
    Case("sql reads other files", "bad-sql", ["query", "{url}", "SELECT * FROM read_csv('/etc/passwd')"],
         says=["read_csv"]),
    Case("sql nonsense", "bad-sql", ["query", "{url}", "SELEC row FORM tokens"], says=["tokens"]),
    Case("packing unknown", "unknown-setting", [*NEW, "--packing", "tight"], says=["tight", "fill"]),
    Case("begin-of-text of no special tokens", "setting-unused",
         [*NEW, "--bos", "document", "--no-special-tokens"], says=["--no-special-tokens"]),
    Case("temperature below nought", "bad-number", [*NEW, "--generate", "4", "--temperature", "-1"],
         says=["--temperature", "-1"]),
    Case("more new tokens than a sequence takes", "context-too-short", [*NEW, "--generate", "40"],
         says=["40", "32", "--context 41"]),
    Case("more than all rows", "bad-number", [*NEW, "--sample", "2"], says=["--sample", "at most 1"]),
    Case("weights unknown", "unknown-weight", [*NEW, "--weights", "W_Q"], says=["W_Q", "W_E"]),
    Case("images for a model of texts", "wrong-source",
         ["ingest", "--source", "images", "--corpus", "{tmp}/i", "--model", "{model}", "--out", "{tmp}/new"],
         spoil=lambda s: _write(s.tmp / "i" / "a.png", b"png"), says=["takes texts", "gives images"]),
    Case("attention over whole lanes", "lanes-unsupported",
         [SITE, "stat.lse.blocks.0.attn", *NEW, "--lanes"], says=["stat.lse.blocks.0.attn"]),
    Case("a dataset of no place", "bad-source",
         ["ingest", "--source", "huggingface", "--model", "{model}", "--out", "{tmp}/new"],
         says=["--corpus", "huggingface:name="]),
    Case("a dataset that is not there", "corpus-missing",
         ["ingest", "--source", "huggingface", "--corpus", "{tmp}/none", "--model", "{model}", "--out", "{tmp}/new"],
         says=["none"]),
    Case("documents that stay whole, packed", "setting-unused",
         ["ingest", "--source", "induction", "--packing", "fill", "--model", "{model}", "--out", "{tmp}/new"],
         says=["--packing fill", "induction"]),
    Case("temperature of nothing", "setting-unused", [*NEW, "--temperature", "0.5"],
         says=["--temperature", "--generate"], code=2),
    Case("seed of no sample", "setting-unused", [*NEW, "--sample-seed", "3"], says=["--sample"], code=2),
    Case("field of a source that has none", "setting-unused", [*NEW, "--text-field", "body"],
         says=["--text-field", "text"], code=2),
    Case("lanes of vectors", "setting-unused",
         ["ingest", "--source", "synthetic", "--rows", "512", "--lanes", "--out", "{tmp}/new"],
         says=["--lanes", "vectors"], code=2),
    Case("config unknown", "bad-config", ["train", "--config", "{tmp}/c.yaml"],
         spoil=lambda s: _write(s.tmp / "c.yaml", "latent: 4"), says=["latent"], code=2),
]  # fmt: skip


class Scene:
    def __init__(self, tmp: Path, url: Path, model: Path, corpus: Path) -> None:
        self.tmp, self.url, self.model, self.corpus = tmp, url, model, corpus

    def fill(self, words):
        """Put paths in; two words before a command replace one of its words by another."""
        names = {"tmp": self.tmp, "url": self.url, "model": self.model, "corpus": self.corpus}
        verbs = {"ingest", "train", "encode", "inspect", "query", "brew", "demo"}
        if words[0] not in verbs:
            old, new, *rest = words
            words = [new if word == old else word for word in rest]
        return [word.format(**names) for word in words]


@pytest.fixture
def scene(tmp_path, template, model, corpus):
    url = tmp_path / "store"
    shutil.copytree(template, url)
    (tmp_path / "work").mkdir()
    return Scene(tmp_path / "work", url, model, corpus)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_bad_input_is_refused_and_nothing_is_lost(case, scene, front_door):
    if case.spoil is not None:
        case.spoil(scene)
    before = _tree(scene.url)
    code, out, err = front_door(*scene.fill(case.words))
    said = err.strip().splitlines()[-1] if err.strip() else ""
    assert code == case.code, err
    assert said.startswith(f"actlake: {case.kind}: "), err
    assert "Traceback" not in err + out
    for word in case.says:
        assert word in said
    assert re.search(
        r"(Nothing|None of its|not changed|unchanged|was not|stands?\b|not used)", said
    ), said
    assert _data(_tree(scene.url)) == _data(before)
    assert not (scene.tmp / "new" / "groups").exists()
    if case.damages:
        report = store.verify(store.open(scene.url))
        assert not report.ok
        assert {problem["where"].get("part") for problem in report.problems} == {1}
        opened = store.open(scene.url)  # the other parts are readable
        rows = opened.view.commit("acts", 0).rows
        assert np.isfinite(opened.read(f"acts:{SITE}", slice(0, rows))).all()
    elif case.name != "store newer":
        assert store.verify(store.open(scene.url)).ok


def _data(files: dict[str, bytes]) -> dict[str, bytes]:
    """Leave out pins: reading may write one, and it holds no data."""
    return {name: data for name, data in files.items() if not name.startswith("pins/")}


def test_errors_speak_json_to_programs(scene, front_door):
    code, out, err = front_door("inspect", scene.tmp / "nothing", "--json")
    assert code == 1
    error = json.loads(out)["error"]
    assert error["kind"] == "store-missing"
    assert not err


NAMESPACE = """
mount -t tmpfs {options} tmpfs {target} || exit 77
{prepare}
{command}
"""


def _in_namespace(target: Path, options: str, prepare: str, words: list[object]):
    """Run actlake in a mount namespace of its own; skip where the system does not allow one."""
    target.mkdir(exist_ok=True)
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "jobs.cli", *words])
    script = NAMESPACE.format(options=options, target=target, prepare=prepare, command=command)
    check = f"\n'{sys.executable}' -m jobs.cli verify {target}/store --json >{target.parent}/verify.json"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script + f"code=$?\n{check}\nexit $code"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"mount namespaces are not allowed here: {done.stderr.strip()[:80]}")
    return done


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this system")
def test_a_full_disk_keeps_what_was_committed(tmp_path, model, corpus):
    target = tmp_path / "disk"
    words = ["ingest", "--model", model, "--corpus", corpus, "--out", target / "store", "--sites"]
    words += ["blocks.*.resid_post,blocks.*.mlp.post", "--context", "32", "--part-rows", "256"]
    words += ["--dtype", "float32"]
    done = _in_namespace(target, "-o size=700k", "", words)
    assert done.returncode == 1, done.stderr
    assert "disk-full" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads((tmp_path / "verify.json").read_text())
    assert report["ok"], report


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare on this system")
def test_a_read_only_disk_is_named(tmp_path, model, corpus, template):
    target = tmp_path / "disk"
    prepare = f"cp -r {template} {target}/store && mount -o remount,ro {target}"
    words = ["ingest", "--into", target / "store", "--model", model, "--group", "more"]
    done = _in_namespace(target, "-o size=50m", prepare, words)
    assert done.returncode == 1, done.stderr
    assert "not-permitted" in done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "verify.json").read_text())["ok"]


@pytest.mark.parametrize(
    ("number", "kind"), [(28, "disk-full"), (30, "not-permitted"), (13, "not-permitted")]
)
def test_a_disk_that_says_no_below_the_adapter(monkeypatch, scene, front_door, number, kind):
    """The same, faked at the system call, where no namespace is allowed."""
    import os

    before = _tree(scene.url)
    real = os.write

    def write(fd, data):
        if len(data) > 3000:
            raise OSError(number, os.strerror(number))
        return real(fd, data)

    monkeypatch.setattr("store.posix.os.write", write)
    code, _, err = front_door(
        "ingest", "--into", scene.url, "--model", scene.model, "--group", "more", "--sites", SITE
    )
    monkeypatch.undo()
    assert code == 1
    assert f"actlake: {kind}: " in err
    assert "Traceback" not in err
    after = _tree(scene.url)
    assert {name: after[name] for name in before} == before
    assert store.verify(store.open(scene.url)).ok


def test_usage_errors_speak_json_too(front_door):
    code, out, _ = front_door("train", "--json")
    assert code == 2
    assert json.loads(out)["error"]["kind"] == "usage"


def test_an_undecodable_file_among_good_ones_is_refused_before_a_store_is_made(
    tmp_path, model, front_door
):
    _write(tmp_path / "c" / "a.txt", "some good words " * 50)
    _write(tmp_path / "c" / "b.txt", b"caf\xe9")
    words = [
        "--model",
        model,
        "--corpus",
        tmp_path / "c",
        "--out",
        tmp_path / "s",
        "--context",
        "32",
    ]
    code, _, err = front_door("ingest", *words)
    assert code == 1
    assert "corpus-undecodable" in err
    assert not (tmp_path / "s").exists()
    _write(tmp_path / "c" / "b.txt", "now good too")
    assert front_door("ingest", *words)[0] == 0
