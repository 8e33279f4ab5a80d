"""Dialogues: rendered by the tokenizer's template, whole, every token with its message and role."""

from __future__ import annotations

import json

import numpy as np
import pytest

import store
from ingest.chats import OTHER, ROLES, rendered
from ingest.config import HarvestConfig, TokensConfig
from ingest.contract import Dialogue
from ingest.errors import IngestError, ModelError, SourceError
from ingest.models import load, toy
from ingest.run import ingest
from ingest.sources import SOURCES
from jobs.runtimes.in_process import InProcess

TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
CHATS = [
    [("system", "Be brief."), ("user", "Who counts the sacks?"), ("assistant", "The miller.")],
    [("user", "And the stones?"), ("assistant", "Nobody."), ("user", "Why?"), ("critic", "Hm.")],
    [("user", "a")],
]


def template(folder, text=TEMPLATE):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "chat_template": text}))
    return folder


@pytest.fixture
def model(tmp_path):
    return template(toy.save("llama", tmp_path / "m", positions=256))


def write(path, chats=CHATS):
    lines = [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in chats]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def source_of(path, **settings):
    return SOURCES.get("chats")(paths=(str(path),), **settings)


def harvest(model, tmp_path, source, **more):
    tokens = TokensConfig(source=source, part_rows=256, **more)
    config = HarvestConfig(model=str(model), sites=("embed",), dtype="float32")
    ingest(tmp_path / "s", tokens, config, runtime=InProcess())
    return store.open(tmp_path / "s")


def text_of(tokenizer, chat):
    messages = [{"role": role, "content": content} for role, content in chat]
    return tokenizer.apply_chat_template(messages, tokenize=False)


def test_a_dialogue_is_one_sequence_of_the_rendered_text(model, tmp_path):
    made = harvest(model, tmp_path, source_of(write(tmp_path / "c.jsonl")))
    tokenizer = load(model).tokenizer
    texts = [text_of(tokenizer, chat) for chat in CHATS]
    held = (
        made.arrow("documents").column("text").to_pylist()
    )  # from the first token with a place on
    for text, kept in zip(texts, held, strict=True):
        assert text == f"<|endoftext|>{kept}"
    sequences = made.arrow("sequences").to_pylist()
    assert len(sequences) == len(CHATS)
    ids = made.arrow("tokens").column("token_id").to_numpy()
    for one, text in zip(sequences, texts, strict=True):
        mine = ids[one["first_row"] : one["first_row"] + one["rows"]]
        assert mine.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_every_token_has_its_message_and_role(model, tmp_path):
    made = harvest(model, tmp_path, source_of(write(tmp_path / "c.jsonl", CHATS * 6)))
    assert len(made.view.parts("tokens")) > 1
    tokens = made.arrow("tokens").to_pydict()
    texts = [text_of(load(model).tokenizer, chat) for chat in CHATS * 6]
    message, role = (made.read(f"roles:{name}", slice(None)) for name in ("message", "role"))
    assert message.dtype == np.int32
    pieces = {}
    for at, doc in enumerate(tokens["doc_id"]):
        low, high = tokens["char_start"][at], tokens["char_end"][at]
        if low < 0:
            assert (message[at], role[at]) == (-1, OTHER)
            continue
        pieces.setdefault((doc, int(message[at])), []).append(texts[doc][low:high])
        name = (CHATS * 6)[doc][message[at]][0]
        assert role[at] == (ROLES.index(name) if name in ROLES else OTHER)
    for (doc, number), parts in pieces.items():
        name, content = (CHATS * 6)[doc][number]
        assert "".join(parts).strip() == f"<{name}>{content}</{name}>"


def test_a_stop_and_another_start_end_at_one_digest(model, tmp_path, monkeypatch):
    path = write(tmp_path / "c.jsonl", CHATS * 6)
    whole = harvest(model, tmp_path, source_of(path)).digest()
    (tmp_path / "again").mkdir()
    import ingest.run as module

    monkeypatch.setattr(module, "write_roles", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        harvest(model, tmp_path / "again", source_of(path))
    monkeypatch.undo()
    assert harvest(model, tmp_path / "again", source_of(path)).digest() == whole


def test_what_is_too_long_is_refused_or_dropped(model, tmp_path):
    chats = [CHATS[2], [("user", "stones " * 200)], CHATS[0]]
    path = write(tmp_path / "c.jsonl", chats)
    with pytest.raises(SourceError, match=r"dialogue-too-long.*c\.jsonl:2.*Use --context \d+"):
        harvest(model, tmp_path, source_of(path), context=100)
    kept = harvest(model, tmp_path / "d", source_of(path, too_long="drop"), context=100)
    assert kept.arrow("sequences").column("doc_id").to_pylist() == [0, 2]
    role = kept.read("roles:role", slice(None))
    assert {ROLES[code] for code in role.tolist() if code != OTHER} == {
        "system",
        "user",
        "assistant",
    }


def test_rows_asked_for_take_whole_dialogues(model, tmp_path):
    made = harvest(model, tmp_path, source_of(write(tmp_path / "c.jsonl")), rows=90)
    assert made.arrow("sequences").num_rows < len(CHATS)
    assert made.coverage["tokens"].rows <= 90


def test_templates_that_look_ahead(model, tmp_path):
    """One that counts the messages at its beginning: no part of a dialogue is a beginning of the whole."""
    ahead = "{{ messages|length }} messages\n" + TEMPLATE
    template(model, ahead)
    tokenizer = load(model).tokenizer
    messages = tuple({"role": r, "content": c} for r, c in CHATS[0])
    got = rendered(tokenizer, Dialogue(name="d", messages=messages))
    assert got.text.startswith("3 messages")
    low = 0
    for end, message in zip(got.ends, messages, strict=True):
        assert message["content"] in got.text[low:end]
        low = end


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (None, ModelError, "no-template"),
        ("{{ raise_exception('roles must alternate') }}", SourceError, "roles must alternate"),
    ],
)
def test_templates_that_do_not_work(tmp_path, text, error, said):
    model = toy.save("llama", tmp_path / "m", positions=256)
    if text is not None:
        template(model, text)
    with pytest.raises(error, match=said):
        harvest(model, tmp_path, source_of(write(tmp_path / "c.jsonl")))
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": "hello"}', "no list of messages"),
        ('{"messages": [{"role": "user"}]}', "no list of messages"),
        ('{"messages": [{"role": "user", "content": [1]}]}', "no list of messages"),
        ('{"text": "hello"}', "it has no messages"),
        ('{"messages": []}', "holds no message"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    ],
)
def test_lines_that_are_no_dialogue(model, tmp_path, line, said):
    (tmp_path / "c.jsonl").write_text(line + "\n")
    with pytest.raises(SourceError, match=said):
        harvest(model, tmp_path, source_of(tmp_path / "c.jsonl"))
    assert not (tmp_path / "s").exists()


def test_settings_and_names_that_are_taken(model, tmp_path):
    with pytest.raises(SourceError, match=r"bad-source.*refuse, drop"):
        source_of("c.jsonl", too_long="cut")
    path = write(tmp_path / "c.jsonl")
    tokens = TokensConfig(source=source_of(path))
    config = HarvestConfig(model=str(model), sites=("embed",), group="roles")
    with pytest.raises(IngestError, match="name-taken"):
        ingest(tmp_path / "s", tokens, config, runtime=InProcess())
