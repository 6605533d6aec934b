"""One table of bad chains for both boundaries: what our own validation says, and what `kubectl apply` says.

Each row changes a good chain in one place. `want` is our whole message; `server` are parts of the API server's message,
the field among them. The rows are in the modules by the field that is at fault.
"""

from __future__ import annotations

from bad_chains import chain, size, stages, task, template
from bad_chains.base import GOOD, BadChain, Change, tagging

__all__ = ["BAD_CHAINS", "GOOD", "BadChain", "Change", "tagging"]

BAD_CHAINS = (*chain.BAD_CHAINS, *task.BAD_CHAINS, *template.BAD_CHAINS, *stages.BAD_CHAINS, *size.BAD_CHAINS)
