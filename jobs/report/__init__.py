"""Reports: one self-contained HTML page, drawn from result tables."""

from jobs.report.page import render

__all__ = ["render"]
