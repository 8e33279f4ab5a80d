"""What dictionaries are measured by beyond reconstruction, one suite a file."""
