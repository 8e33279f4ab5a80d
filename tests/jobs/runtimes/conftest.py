"""Ray reads its settings when it is first imported, which some test of another file may do."""

from jobs.runtimes.ray import set_environment

set_environment(local=True)
