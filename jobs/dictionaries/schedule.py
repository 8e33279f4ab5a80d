"""Learning rate, dead window and threshold start as functions of the run's length."""

from __future__ import annotations

from jobs.dictionaries.contract import TrainConfig

WARMUP_STEPS = 1000
WARMUP_SHARE = 0.05
DEAD_ROWS = 10_000_000
DEAD_SHARE = 0.1
THRESHOLD_STEP = 1000
RULE_LR = 2e-4
RULE_LATENTS = 2**14


def peak_lr(cfg: TrainConfig) -> float:
    """Return the config's rate, or ``2e-4 / sqrt(latents / 2^14)`` (Gao et al., 2406.04093)."""
    if cfg.lr is not None:
        return cfg.lr
    latents = cfg.build_variant().latents
    return float(RULE_LR / (latents / RULE_LATENTS) ** 0.5)


def learning_rate(cfg: TrainConfig, step: int) -> float:
    """Return the rate of step ``step``, counted from 0: linear rise, plateau, linear fall to 0."""
    warmup = cfg.warmup_steps
    if warmup is None:
        warmup = min(WARMUP_STEPS, int(WARMUP_SHARE * cfg.steps))
    rise = (step + 1) / (warmup + 1)
    decay_steps = cfg.decay_share * cfg.steps
    fall = (cfg.steps - step) / decay_steps if decay_steps > 0 else 1.0
    return peak_lr(cfg) * min(1.0, rise, fall)


def dead_window(cfg: TrainConfig) -> int:
    """Return after how many rows without firing a latent is dead."""
    if cfg.dead_rows is not None:
        return cfg.dead_rows
    return max(1, min(DEAD_ROWS, int(DEAD_SHARE * cfg.steps * cfg.batch_rows)))


def threshold_start(cfg: TrainConfig) -> int:
    """Return the first step whose lowest code enters the threshold's running mean."""
    return min(THRESHOLD_STEP, cfg.steps // 2)
