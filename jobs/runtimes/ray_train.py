"""Processes that work as one: Ray Train starts them, joins them in ``torch.distributed`` and starts them anew where one dies.

What they do is one function, the same as under torchrun or alone; it must take up its own work from where it was.
"""

from __future__ import annotations

import json
import pickle
import shutil
import uuid
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from jobs.codebook import write_atomic
from jobs.errors import JobError
from jobs.runtimes.post import first_line, set_threads
from jobs.runtimes.ray import Ray
from store.errors import ActlakeError

RESTARTS = 3
"""Times all processes are started anew after one died."""
FOLDER = ".ray_train"
REFUSED = "refused.pickle"


def as_ranks(
    runtime: Ray, work: Callable[[], Any], folder: str | Path, *, restarts: int = RESTARTS
) -> Any:
    """Return what ``work`` returns, JSON values, on the first of the runtime's workers, all of which run it as one group.

    Parameters
    ----------
    runtime
        Says where, how many, with which threads, GPUs and named resources. Without ``workers``: as many as fit.
    work
        Picklable; ``torch.distributed`` is joined when it is called (gloo, or nccl with GPUs). After a death all of them
        call it again.
    folder
        Seen by every node; Ray keeps its own records there while it runs.

    Raises
    ------
    ActlakeError
        What the work itself refused on some rank, as it is.
    JobError
        ``ranks-failed``: the work failed on some rank, the last of ``restarts`` + 1 times.
    """
    ask, fit = runtime.start()
    records = Path(folder).resolve() / f"{FOLDER}-{uuid.uuid4().hex[:12]}"
    records.mkdir(parents=True, exist_ok=True)
    answer = records / "answer.json"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own modules, about one another
            trainer = _trainer(partial(_on_rank, work, ask.cpus, answer), records, restarts)(
                num_workers=runtime.workers or fit,
                use_gpu=ask.gpus > 0,
                resources_per_worker={"CPU": ask.cpus, **ask.named}
                | ({"GPU": ask.gpus} if ask.gpus else {}),
            )
            trainer.fit()
        return json.loads(answer.read_text())
    except Exception as error:  # whatever a worker raised, wrapped in Ray's own
        refused = records / REFUSED
        if refused.exists():
            raise pickle.loads(refused.read_bytes()) from error
        raise JobError(
            f"processes of Ray Train were to work as one; one failed {restarts + 1} times: {_cause(error)}. What was saved "
            "until then stands: the same command goes on from there.",
            kind="ranks-failed",
        ) from error
    finally:
        shutil.rmtree(records, ignore_errors=True)


def _trainer(work: Callable[[], None], records: Path, restarts: int) -> Callable[..., Any]:
    """Return what makes Ray's trainer of a scaling."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    config = RunConfig(
        storage_path=str(records), failure_config=FailureConfig(max_failures=restarts)
    )
    return lambda **scaling: TorchTrainer(
        work, scaling_config=ScalingConfig(**scaling), run_config=config
    )


def _on_rank(work: Callable[[], Any], threads: float, path: Path) -> None:
    from ray.train import get_context

    set_threads(int(threads))
    refused = path.with_name(REFUSED)
    if refused.exists():
        raise pickle.loads(refused.read_bytes())
    try:
        answer = work()
    except ActlakeError as error:  # starting anew would not help; the driver raises it as it is
        write_atomic(refused, pickle.dumps(error))
        raise
    if get_context().get_world_rank() == 0:
        path.write_text(json.dumps(answer))


def _cause(error: BaseException) -> str:
    """Return the first line of what a worker raised, below what Ray wraps around it."""
    failures = getattr(error, "worker_failures", None)
    inner = next(iter(failures.values())) if failures else (error.__cause__ or error)
    return first_line(getattr(inner, "cause", None) or inner)
