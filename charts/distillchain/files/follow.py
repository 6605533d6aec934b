"""Follow the chain of `helm test`. Exit code 0: it succeeded. 1: it failed or took too long."""

from __future__ import annotations

import sys
import time

from kubernetes import client, config

POLL_S = 2


def main(namespace: str, name: str, timeout_s: int) -> int:
    """Print each change of phase or message, and return the exit code."""
    config.load_incluster_config()
    chains = client.CustomObjectsApi()
    give_up_at = time.monotonic() + timeout_s
    printed = ""
    while time.monotonic() < give_up_at:
        chain = chains.get_namespaced_custom_object(
            "distillchain.io", "v1alpha1", namespace, "distillationchains", name
        )
        status = chain.get("status") or {}
        phase = status.get("phase", "Pending")
        line = f"{phase}: {status.get('message') or 'the operator has not looked at it yet'}"
        if line != printed:
            print(line, flush=True)
            printed = line
        if phase in ("Succeeded", "Failed"):
            return 0 if phase == "Succeeded" else 1
        time.sleep(POLL_S)
    print(f"not done after {timeout_s} s; see: kubectl describe distillationchain {name} -n {namespace}", flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
