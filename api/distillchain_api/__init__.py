"""The contract between users, operator, trainer and command line: typed documents and their digests.

Knows no cluster, no model, no disk: every function here is pure. The folder crds/ is generated from these types.
"""

CONTRACT_VERSION = 2
"""Part of every digest. Raise it when the same spec would train a different student than before."""

GROUP = "distillchain.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DistillationChain"
PLURAL = "distillationchains"
