"""What stands between us and libraries that may be missing or talk too much."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ingest.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator


def missing_package(package: str, wish: str) -> ModelError:
    """Return the ``missing-package`` error for a wish that needs a package."""
    return ModelError(
        f"{wish} needs the package {package!r}, which is not installed. Nothing was loaded. "
        f"Install it: pip install {package}",
        kind="missing-package",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers and the hub client off the terminal, then restore their settings."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise missing_package("transformers", "loading a model") from error
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
