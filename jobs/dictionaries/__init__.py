"""Sparse dictionaries trained on stored activations."""

from jobs.dictionaries.config import TrainConfig
from jobs.dictionaries.contract import VARIANTS
from jobs.dictionaries.evaluate import EvalResult, evaluate
from jobs.dictionaries.train import Trained, train

__all__ = ["VARIANTS", "EvalResult", "TrainConfig", "Trained", "evaluate", "train"]
