"""``demo``."""

from __future__ import annotations

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def demo(config: settings.Demo, context: Context) -> Answer:
    """Run the demo."""
    from jobs.demo import demo

    found = demo(config, progress=context.progress, interrupts=context.interrupts)
    text = (
        f"held-out FVU {found.fvu:.4f} at L0 {found.l0:.1f}, {found.dead} dead latents, "
        f"{found.seconds:.0f} s\n"
        f"store   {found.store} (digest {str(found.digest)[:16]}, verified)\n"
        f"report  {found.report}"
    )
    return Answer(found.to_json(), text)
