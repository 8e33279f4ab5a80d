"""Models whose circuits are known: written by hand, or small enough to be trained on a known process."""

from ingest.models.planted.contract import (
    PLANTED,
    TRUTH_FILE,
    PlantedModel,
    is_planted,
    planted_folder,
)

__all__ = ["PLANTED", "TRUTH_FILE", "PlantedModel", "is_planted", "planted_folder"]
