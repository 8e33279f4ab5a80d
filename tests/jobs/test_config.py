"""Settings: flags, files and Python say the same thing the same way, and what fits nowhere is refused."""

from __future__ import annotations

import dataclasses
import json
import typing

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jobs import cli
from jobs import config as settings
from jobs.errors import UsageError
from jobs.values import BINARY, DECIMAL, count, split_names

VERBS = {verb: cls for verb, (cls, _) in cli.VERBS.items()}
each_verb = pytest.mark.parametrize("verb", VERBS)

NAMES = (
    "blocks.3.resid_post",
    "blocks.{3,5}.resid_post",
    "@50%",
    "embed",
    "blocks.*.attn.z",
    "-odd",
    "日本",
)
words = st.sampled_from(
    ("a", "./store", "x y", "0.5", "true", "null", "400k", "SELECT 1, 2", "日本", "a=b")
)
positive = st.integers(1, 10**9)


def strategy(declared):
    """Return values of a setting's type."""
    inner = [option for option in typing.get_args(declared) if option is not type(None)]
    if type(None) in typing.get_args(declared):
        return st.none() | strategy(inner[0])
    if declared == settings.Names:
        return st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(tuple)
    if declared == settings.Words:
        return st.lists(st.sampled_from(("topk", "batch_topk")), min_size=1, max_size=3).map(tuple)
    if declared in (settings.Latents, settings.Numbers):
        return st.lists(positive, min_size=1, max_size=3).map(tuple)
    if declared == settings.Shares:
        return st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=3).map(tuple)
    if declared == settings.Rows:
        return positive
    declared = (
        typing.get_args(declared)[0]
        if typing.get_origin(declared) is typing.Annotated
        else declared
    )
    if typing.get_origin(declared) is tuple:
        return st.lists(words, min_size=1, max_size=3).map(tuple)
    plain = {str: words, bool: st.booleans(), int: positive, float: st.floats(1e-9, 1e9)}
    return plain[declared]


def fields_of(cls):
    hints = typing.get_type_hints(cls, include_extras=True)
    skipped = {"json", "config", "show_config"}
    return {name: hint for name, hint in hints.items() if name not in skipped}


def configs(cls):
    return st.builds(cls, **{name: strategy(hint) for name, hint in fields_of(cls).items()})


def flags_of(config):
    """Return the command line that says every setting of a config."""
    placed, named = [], []
    for name, hint in fields_of(type(config)).items():
        value, flag = getattr(config, name), f"--{name.replace('_', '-')}"
        positional = hint in (settings.Positional[str], settings.Positional[tuple[str, ...]])
        if positional:
            placed += [value] if isinstance(value, str) else value
        elif isinstance(value, bool):
            named.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple) and hint == tuple[str, ...]:
            named += [flag, *value] if value else []
        elif isinstance(value, tuple):
            named.append(f"{flag}={','.join(map(str, value))}")
        elif value is not None:
            named.append(f"{flag}={value}")
    return [*placed, *named]


@each_verb
@given(data=st.data())
def test_flags_files_and_python_make_one_config(verb, data, tmp_path_factory):
    cls = VERBS[verb]
    config = data.draw(configs(cls))
    assert cli.parse(cls, flags_of(config), prog=verb) == config
    text = settings.to_yaml(config)
    assert cli.from_mapping(cls, yaml.safe_load(text), "here") == config
    assert cli.from_mapping(cls, json.loads(json.dumps(yaml.safe_load(text))), "here") == config
    file = tmp_path_factory.getbasetemp() / f"{verb}.yaml"
    file.write_text(text, encoding="utf-8")
    read = cli.parse(cls, [f"--config={file}"], prog=verb)
    assert dataclasses.replace(read, config=None) == config


@each_verb
def test_a_setting_nobody_knows_is_refused(verb):
    with pytest.raises(UsageError, match=r"bad-config: here .*unknown: nope; known: .*show_config"):
        cli.from_mapping(VERBS[verb], {"nope": 1}, "here")
    with pytest.raises(SystemExit) as caught:
        cli.parse(VERBS[verb], ["--nope", "1"], prog=verb)
    assert caught.value.code == 2


@each_verb
def test_every_setting_and_verb_is_explained(verb):
    cls = VERBS[verb]
    assert f"Example: actlake {verb} " in cls.__doc__
    assert all(name.isidentifier() for name in fields_of(cls))
    with pytest.raises(SystemExit) as caught:
        cli.parse(cls, ["--help"], prog=verb)
    assert caught.value.code == 0


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "demo.yaml"
    file.write_text("rows: 5k\nlatents: [16k]\nsites: [a, 'b.{1,2}']\n")
    found = cli.parse(settings.Demo, ["--config", str(file), "--rows", "7k"], prog="demo")
    assert (found.rows, found.latents, found.sites) == (7000, (16384,), ("a", "b.{1,2}"))


@pytest.mark.parametrize(
    "text", ["{}", "", "rows: 5\nunknown: 1", "- 1", "3", "rows: [", "\x00"], ids=ascii
)
def test_a_file_is_a_mapping_of_settings(tmp_path, text):
    file = tmp_path / "demo.yaml"
    file.write_text(text)
    if text in {"{}", ""}:
        assert cli.parse(settings.Demo, ["--config", str(file)], prog="demo").rows == 400_000
        return
    with pytest.raises(UsageError, match="bad-config"):
        cli.parse(settings.Demo, ["--config", str(file)], prog="demo")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(
        UsageError, match=r"bad-config: the settings in .*nope\.yaml cannot be read"
    ):
        cli.parse(settings.Demo, ["--config", str(tmp_path / "nope.yaml")], prog="demo")


# -- spelling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_as", "meant"),
    [
        ({"rows": "400k"}, {"rows": 400_000}),
        ({"rows": "1_000"}, {"rows": 1000}),
        ({"latents": "4k"}, {"latents": (4096,)}),
        ({"latents": "4k, 16k"}, {"latents": (4096, 16384)}),
        ({"latents": ["4k", 16384]}, {"latents": (4096, 16384)}),
        ({"latents": 4096}, {"latents": (4096,)}),
        ({"k": "32,64"}, {"k": (32, 64)}),
        ({"sites": "a,b.{3,5}.c"}, {"sites": ("a", "b.{3,5}.c")}),
        ({"sites": ["a", "b.{3,5}.c"]}, {"sites": ("a", "b.{3,5}.c")}),
        ({"corpus": "a.txt"}, {"corpus": ("a.txt",)}),
        ({"corpus": ["a,b.txt"]}, {"corpus": ("a,b.txt",)}),
        ({"epochs": "3"}, {"epochs": 3}),
        ({"model": None}, {"model": None}),
    ],
    ids=str,
)
def test_python_and_files_may_spell_as_flags_do(given_as, meant):
    assert (
        settings.Demo(**given_as)
        == settings.Demo(**meant)
        == cli.from_mapping(settings.Demo, given_as, "here")
    )


def test_yaml_and_json_numbers_are_numbers():
    fields = yaml.safe_load("{url: u, site: s, lr: 3e-4, rows: 10k}")  # YAML 1.1 reads 3e-4 as text
    found = cli.from_mapping(settings.Train, fields, "here")
    assert (found.lr, found.rows) == (3e-4, 10_000)
    assert settings.Train(url="u", site="s", lr=1).lr == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": None}, {"rows": 0}, {"rows": -5}, {"rows": 3.5}, {"rows": True}, {"rows": "many"}, {"rows": "infk"},
        {"rows": [1]}, {"rows": ""}, {"latents": []}, {"latents": ""}, {"latents": "4k,,x"}, {"latents": [[1]]},
        {"latents": "-4"}, {"k": "1.5"}, {"sites": []}, {"sites": ","}, {"out": 3}, {"out": None},
        {"model": 7}, {"json": "yes"}, {"epochs": 1.5}, {"epochs": "x"}, {"corpus": [1]}, {"corpus": {"a": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_values_that_do_not_fit_are_refused(wrong):
    name = next(iter(wrong))
    for build in (
        lambda: settings.Demo(**wrong),
        lambda: cli.from_mapping(settings.Demo, wrong, "here"),
    ):
        with pytest.raises(
            UsageError, match=f"bad-config: demo has the setting {name}: "
        ) as caught:
            build()
        assert caught.value.exit_code == 2
        assert "Nothing was started" in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"lr": "nan"}, {"lr": float("inf")}, {"lr": "x"}, {"lr": True}], ids=str
)
def test_rates_are_finite_numbers(wrong):
    with pytest.raises(UsageError, match="bad-config: train has the setting lr"):
        settings.Train(url="u", site="s", **wrong)


@pytest.mark.parametrize(
    "flag", ["--rows=infk", "--rows=-5", "--rows=0", "--k=", "--latents=,", "--sites="]
)
def test_flags_that_do_not_fit_end_in_usage(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.parse(settings.Demo, [flag], prog="demo")
    assert caught.value.code == 2
    assert "rror" in capsys.readouterr().err


# -- counts and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "units", "number"),
    [
        ("4k", BINARY, 4096), ("16K", BINARY, 16_384), ("1M", BINARY, 1 << 20), ("1.5k", BINARY, 1536),
        ("400k", DECIMAL, 400_000), ("1.5M", DECIMAL, 1_500_000), ("2G", DECIMAL, 2 * 10**9),
        ("2.01k", DECIMAL, 2010), ("1.001k", DECIMAL, 1001), ("2.3M", DECIMAL, 2_300_000),
        (" 4_096 ", DECIMAL, 4096), ("10000000000000000001", DECIMAL, 10**19 + 1),
    ],
)  # fmt: skip
def test_counts_are_exact(text, units, number):
    assert count(text, units) == number


@given(number=st.integers(1, 10**15), places=st.integers(0, 9))
def test_a_count_with_a_unit_is_the_number_it_says(number, places):
    digits = f"{number:0{places + 1}d}"
    whole, rest = digits[: len(digits) - places], digits[len(digits) - places :]
    text = f"{whole}.{rest}g" if rest else f"{whole}g"
    if number * 10**9 % 10**places:
        with pytest.raises(ValueError, match="positive whole number"):
            count(text, DECIMAL)
    else:
        assert count(text, DECIMAL) == number * 10**9 // 10**places


@given(text=st.text(max_size=6))
def test_whatever_is_typed_is_a_positive_number_or_a_value_error(text):
    try:
        assert count(text, DECIMAL) > 0
    except ValueError as error:
        assert "positive whole number" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    "text",
    ["", "k", "1.5", "1.0001k", "0", "0k", "-1", "1e3", "nan", "inf", "infk", "1/2k", "٣", "1k2"],
)
def test_what_is_no_count_is_a_value_error(text):
    with pytest.raises(ValueError, match="positive whole number"):
        count(text, DECIMAL)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("embed", ("embed",)),
        ("blocks.{3,5}.resid_post,embed", ("blocks.{3,5}.resid_post", "embed")),
        ("a, b ,,c,", ("a", "b", "c")),
        ("{a,{b,c}},d", ("{a,{b,c}}", "d")),
        ("@50%,blocks.*.attn.z", ("@50%", "blocks.*.attn.z")),
    ],
)
def test_names_are_split_outside_braces(text, names):
    assert split_names(text) == names


@given(names=st.lists(st.sampled_from(NAMES), min_size=1))
def test_joined_names_come_apart_again(names):
    assert split_names(",".join(names)) == tuple(names)
