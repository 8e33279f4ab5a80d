"""What each verb does: opens what it names, calls one function of the layers, says what came of it.

With the front door, the one place that sees every subpackage and wires them. Heavy libraries are imported by the
verb that needs them; related verbs share a file.
"""

from jobs.verbs.contract import Answer, Context
from jobs.verbs.table import VERBS

__all__ = ["VERBS", "Answer", "Context"]
