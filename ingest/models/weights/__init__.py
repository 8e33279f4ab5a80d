"""Trained weights that come with the package; README.md beside this says how they were made."""
