"""``demo``."""

from __future__ import annotations

from jobs import config as settings
from jobs.verbs.contract import Answer, Context


def demo(config: settings.Demo, context: Context) -> Answer:
    """Run the demo."""
    from jobs.demo import demo

    found = demo(config, progress=context.progress, interrupts=context.interrupts)
    top = found.top_head
    text = (
        f"held-out FVU {found.fvu:.4f} at L0 {found.l0:.1f}, {found.dead} dead latents, "
        f"{found.seconds:.0f} s\n"
        f"top induction head {top['layer']}.{top['head']}: prefix matching {top['prefix_matching']:.2f}, without it "
        f"the loss on repeated tokens rises by {top['rise']:.2f} nats; confirmed by {top['confirmed']} of "
        f"{top['seeds']} seeds\n"
        f"store   {found.store} (digest {str(found.digest)[:16]}, verified)\n"
        f"heads   {found.heads} (digest {str(found.heads_digest)[:16]}, verified)\n"
        f"report  {found.report}"
    )
    return Answer(found.to_json(), text)
