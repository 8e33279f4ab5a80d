"""Fast forms of operations, one a file; each is checked against the operation's reference before it is timed."""
