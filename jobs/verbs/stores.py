"""``inspect``, ``verify`` and ``report``."""

from __future__ import annotations

from pathlib import Path

from jobs import config as settings
from jobs.errors import UsageError
from jobs.verbs.contract import Answer, Context


def inspect(config: settings.Inspect, _context: Context) -> Answer:
    """Describe a store."""
    from jobs.summary import describe, summarize
    from store import open as open_store

    summary = summarize(open_store(config.url, config.pin))
    return Answer(summary, describe(summary))


def verify(config: settings.Verify, context: Context) -> Answer:
    """Read everything back."""
    from store import open as open_store
    from store import verify

    report = verify(
        open_store(config.url),
        progress=lambda name, done: context.progress(
            f"verify {name}", done >> 20, None, unit="MiB"
        ),
    )
    lines = [f"{p['kind']}: {p['message']}" for p in report.problems]
    lines += [f"orphan (harmless, never read): {key}" for key in report.orphans]
    state = "ok" if report.ok else f"{len(report.problems)} problems"
    lines.append(
        f"{state}: {report.checked_bytes:,} bytes of {report.groups} groups, {report.parts} parts, "
        f"{report.rows:,} rows checked"
    )
    if report.digest:
        lines.append(f"digest {report.digest}")
    return Answer(report.to_json(), "\n".join(lines), 0 if report.ok else 1)


def report(config: settings.ReportOn, _context: Context) -> Answer:
    """Draw results as one page."""
    from jobs.report import render
    from jobs.results import Result
    from jobs.summary import summarize
    from store import open as open_store

    if not config.results:
        raise UsageError("say which results to draw: DIR/results/… Nothing was started.")
    results = [Result.open(path) for path in config.results]
    summary = summarize(open_store(config.on)) if config.on else {}
    page = render(results, summary, Path(config.out))
    return Answer({"report": str(page)}, f"report  {page}")
