"""What is measured on a model's logits: one number per example, differentiable."""

from ingest.models.metrics.contract import METRICS, Examples, Metric, metric_name

__all__ = ["METRICS", "Examples", "Metric", "metric_name"]
