"""What to keep: one planner per file."""
