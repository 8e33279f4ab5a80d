"""How a plan is computed: one attention executor per file."""
