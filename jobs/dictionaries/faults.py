"""What stops a training run: rows of another width, numbers that are not finite, a feed that ends."""

from __future__ import annotations

import torch

from jobs.batches import Batch
from jobs.dictionaries.calibration import is_finite
from jobs.dictionaries.checkpoint import Checkpoints
from jobs.dictionaries.contract import Feed
from jobs.dictionaries.learner import Learner, StepReport
from jobs.errors import DivergedError, JobError
from store.errors import InvalidInputError

NAMED_ROWS = 16


def check_widths(batch: Batch, feed: Feed, step: int) -> None:
    """Raise ``width-mismatch`` where a batch is not of the feed's widths."""
    widths = feed.widths
    for rows, width in ((batch.x, widths.width), (batch.target, widths.out_width)):
        if rows.dim() != 2 or rows.shape[1] != width:
            raise InvalidInputError(
                f"batch {step} has shape {tuple(rows.shape)}, the feed holds width {width}. Training"
                " stopped; the last checkpoint stands. Give the feed of one site.",
                kind="width-mismatch",
            )


def diverged(
    saves: Checkpoints, learner: Learner, report: StepReport, batch: Batch
) -> DivergedError:
    """Name the rows that are not finite, or all rows of the batch where every row is."""
    ranks = learner.share.row_ranks
    bad_ids = torch.cat(ranks.collect(batch.row_ids[~is_finite(batch).cpu()]))
    every = torch.cat(ranks.collect(batch.row_ids))
    named = (bad_ids if len(bad_ids) else every).sort().values.tolist()
    kind = "rows that are not finite" if len(bad_ids) else "finite rows"
    what = (
        f"step {learner.step} gave loss {report.loss:g} and gradient norm {report.gradient_norm:g}"
    )
    return bad_rows(saves, named, what, step=learner.step, kind=kind)


def bad_rows(
    saves: Checkpoints,
    row_ids: list[int],
    what: str,
    *,
    step: int = 0,
    kind: str = "rows that are not finite",
) -> DivergedError:
    """Write down which rows broke a step, and return the error that names the first of them."""
    path = saves.report_rows(step, row_ids, kind)
    more = ", …" if len(row_ids) > NAMED_ROWS else ""
    shown = ", ".join(map(str, row_ids[:NAMED_ROWS])) + more
    return DivergedError(
        f"{what} on {len(row_ids)} {kind}: {shown} ({path or 'no folder to list them in'}). The last"
        " checkpoint stands. Leave those rows out, or lower the learning rate.",
        step=step,
        row_ids=row_ids[:NAMED_ROWS],
    )


def feed_ended(learner: Learner) -> JobError:
    """Return the error for a feed that ended before the run."""
    return JobError(
        f"training wants {learner.cfg.steps} batches, the feed ended after {learner.step}. The last"
        " checkpoint stands. Give a feed that goes on with the next epoch.",
        kind="feed-ended",
    )
