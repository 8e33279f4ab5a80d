"""Prompts become rows: sources, models, plan, harvest."""
