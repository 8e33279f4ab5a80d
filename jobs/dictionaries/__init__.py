"""Sparse dictionaries trained on stored activations."""

from jobs.dictionaries.contract import VARIANTS, TrainConfig
from jobs.dictionaries.evaluate import EvalResult, evaluate
from jobs.dictionaries.train import Trained, train

__all__ = ["VARIANTS", "EvalResult", "TrainConfig", "Trained", "evaluate", "train"]
