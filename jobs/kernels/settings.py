"""What a measurement of attention planners is told."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.errors import UsageError
from jobs.kernels.contract import EXECUTORS, PLANNERS, Budget, Executor, Planner, Tiles
from jobs.kernels.controls import CONTROLS
from jobs.kernels.measure import MIN_REPEATS


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionBench:
    """What is measured; its hash names the result."""

    layers: tuple[int, ...]
    """Blocks, from 0."""
    planners: tuple[str, ...] = ("moba", "oracle", "random", "sink_local")
    """Names in `PLANNERS`, with their default settings."""
    densities: tuple[float, ...] = (0.125, 0.25, 0.5)
    """Budgets, each above 0 and at most 1."""
    block: int = 16
    """Queries and keys of a tile."""
    plan_heads: str = "query"
    """See `Tiles.heads`."""
    controls: tuple[str, ...] = ("gauss_cov", "gauss_iid", "perm_tok")
    """Names in `CONTROLS` beside ``real``, which always runs."""
    sequences: int = 16
    """Sequences, of as many documents as there are."""
    split: str | None = None
    """Split the documents are of; None takes all."""
    group: str | None = None
    """Group of the columns, where several hold them."""
    executor: str = "torch_blocks"
    """Name in `EXECUTORS`."""
    precision: str = "float32"
    """Of the executor."""
    repeats: int = 9
    """Timed rounds; 0 for no times."""
    lengths: tuple[int, ...] = ()
    """Longer problems to time, in tokens."""
    seed: int = 0
    """Root of all that is drawn."""

    def __post_init__(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise UsageError(
                    f"there is no control {name!r}; known: {', '.join(CONTROLS)}. Nothing was started.",
                    kind="unknown-name",
                )
        few = 0 < self.repeats < MIN_REPEATS or self.repeats < 0
        if self.sequences < 1 or not self.layers or few or any(n < 1 for n in self.lengths):
            raise UsageError(
                f"{self.sequences} sequences of layers {list(self.layers)}, timed {self.repeats} times, and lengths "
                f"{list(self.lengths)} were asked; a measurement takes a sequence and a layer at least, "
                f"{MIN_REPEATS} repeats (or 0: no times) and lengths above 0. Nothing was started.",
                kind="bad-number",
            )
        _ = self.tiles, self.budgets(), self.build_planners(), self.build_executor()

    @property
    def tiles(self) -> Tiles:
        """Tiles of all plans."""
        return Tiles(bq=self.block, bk=self.block, heads=self.plan_heads)

    def budgets(self) -> list[Budget]:
        """Return the budgets."""
        return [Budget(density=density) for density in self.densities]

    def build_planners(self) -> list[Planner]:
        """Return the planners; those that draw do so from this seed."""
        found = []
        for name in self.planners:
            cls = PLANNERS.get(name)
            found.append(cls(seed=self.seed) if "seed" in cls.__dataclass_fields__ else cls())
        return found

    def build_executor(self) -> Executor:
        """Return the executor."""
        executor: Executor = EXECUTORS.get(self.executor)(precision=self.precision)
        return executor
