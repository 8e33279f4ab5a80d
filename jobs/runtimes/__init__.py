"""Where parts are worked on, one runtime a file."""
