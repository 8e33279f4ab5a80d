"""The front door ``actlake``: parses, builds one config, calls one verb, prints one answer.

The one place that prints, and where errors become exit codes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro
import yaml

from jobs import config as settings
from jobs.errors import UsageError
from jobs.interrupts import Interrupts
from jobs.progress import Progress
from jobs.verbs import VERBS, Context
from store.errors import ActlakeError

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code.

    0 done, 1 failed, 2 usage, 3 refused by plan or budget, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in {"-h", "--help"}:
        print(_overview())
        return 0 if words else UsageError.exit_code
    if _is_family(words[0]) and words[1:2] in (["-h"], ["--help"]):
        print(_overview(words[0]))
        return 0
    as_json = "--json" in words
    with Interrupts().installed() as interrupts:
        try:
            return _run(words, interrupts, as_json=as_json)
        except ActlakeError as error:
            _complain(error, as_json=as_json)
            return error.exit_code
        except KeyboardInterrupt:
            print(
                "interrupted: what was committed stands; run the same again to go on",
                file=sys.stderr,
            )
            return INTERRUPTED
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate" not in str(error):
                raise
            _complain(_out_of_memory(error), as_json=as_json)
            return 1
        except BrokenPipeError:
            sys.stderr.close()
            return 1


def _run(words: list[str], interrupts: Interrupts, *, as_json: bool) -> int:
    verb, rest = _verb(words)
    cls, run = VERBS[verb]
    config = parse(cls, rest, prog=f"actlake {verb}")
    if config.show_config:
        print(settings.to_yaml(config), end="")
        return 0
    with Progress(quiet=as_json, check=interrupts.check) as progress:
        answer = run(config, Context(progress=progress, interrupts=interrupts))
    if answer.text:
        print(json.dumps(answer.value, ensure_ascii=False, default=str) if as_json else answer.text)
    return answer.code


def _is_family(word: str) -> bool:
    return any(verb.startswith(f"{word} ") for verb in VERBS)


def _verb(words: list[str]) -> tuple[str, list[str]]:
    """Return the verb and the words after it; a family's members are two words: ``bench attention``."""
    for size in (2, 1):
        if " ".join(words[:size]) in VERBS:
            return " ".join(words[:size]), words[size:]
    known = [verb for verb in VERBS if verb.startswith(f"{words[0]} ")] or list(VERBS)
    asked = words[: 2 if _is_family(words[0]) else 1]
    raise UsageError(
        f"there is no verb {' '.join(asked)!r}; known: {', '.join(known)}. Nothing was started. "
        "See actlake --help.",
        kind="unknown-name",
    )


def parse(cls: Any, words: Sequence[str], *, prog: str) -> Any:
    """Build a verb's config from flags, and from the file ``--config`` names where flags are silent."""
    file = _option(words, "--config")
    default = None if file is None else _from_file(cls, Path(file))
    if "--json" not in words or {"-h", "--help"} & set(words):
        return tyro.cli(cls, args=list(words), prog=prog, default=default)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return tyro.cli(cls, args=list(words), prog=prog, default=default)
    except SystemExit as end:
        raise UsageError(f"{prog}: {' '.join(said.getvalue().split())}") from end


def _option(words: Sequence[str], name: str) -> str | None:
    for index, word in enumerate(words):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and index + 1 < len(words):
            return words[index + 1]
    return None


def _from_file(cls: Any, path: Path) -> Any:
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(
            f"the settings in {path} cannot be read: {error}. Nothing was started.",
            kind="bad-config",
        ) from error
    return from_mapping(cls, fields, str(path))


def from_mapping(cls: Any, fields: Any, where: str) -> Any:
    """Build a config from JSON values; lists become tuples, and what is required may be missing."""
    known = {field.name for field in dataclasses.fields(cls)}
    given = (
        {str(k).replace("-", "_"): v for k, v in fields.items()}
        if isinstance(fields, dict)
        else None
    )
    if given is None or set(given) - known:
        raise UsageError(
            f"{where} should map settings to values; unknown: "
            f"{', '.join(sorted(set(given or {}) - known)) or 'all of it'}; known: {', '.join(sorted(known))}. "
            "Nothing was started.",
            kind="bad-config",
        )
    required = {
        field.name: tyro.MISSING
        for field in dataclasses.fields(cls)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    return cls(**{**required, **plain})


def _complain(error: ActlakeError, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.to_json()}, ensure_ascii=False, default=str))
    else:
        print(f"actlake: {error}", file=sys.stderr)


def _out_of_memory(error: Exception) -> ActlakeError:
    first = (str(error).strip() or "no more memory").splitlines()[0]
    return ActlakeError(
        f"the machine ran out of memory ({first[:160]}). What was committed before stands. Ask for less: a smaller "
        "--batch, --batch-rows, --window-rows or --latents.",
        kind="out-of-memory",
    )


def _overview(family: str = "") -> str:
    lines = [
        "actlake: activation stores. A model runs once; every later job reads what it saw.",
        "",
        "usage: actlake VERB …    (actlake VERB --help explains one)",
        "",
    ]
    for verb, (cls, _) in VERBS.items():
        if verb.startswith(f"{family} ".lstrip()):
            lines.append(f"  {verb:<16} {(cls.__doc__ or '').splitlines()[0]}")
    lines += ["", "Start with: actlake demo"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
