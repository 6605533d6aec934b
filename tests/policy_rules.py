"""What a NetworkPolicy admits, by the rules of its API. The network of the tests' node enforces none.

https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/
"""

from __future__ import annotations

from typing import Any


def isolates(policy: dict[str, Any], pod: dict[str, Any], direction: str) -> bool:
    """Whether a policy restricts the traffic of a pod: `Ingress` is what others send to it, `Egress` what it sends."""
    return (
        policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
        and direction in policy["spec"]["policyTypes"]
        and _matches(policy["spec"]["podSelector"], pod)
    )


def admits(policy: dict[str, Any], sender: dict[str, Any], receiver: dict[str, Any], port: int) -> bool:
    """Whether the sender reaches a TCP port of the receiver, with this policy alone in the cluster."""
    if not isolates(policy, receiver, "Ingress"):
        return True
    return any(
        _has_port(rule, port) and any(_is_peer(peer, policy, sender) for peer in rule["from"])
        for rule in policy["spec"].get("ingress", [])
    )


def _is_peer(peer: dict[str, Any], policy: dict[str, Any], pod: dict[str, Any]) -> bool:
    assert peer.keys() == {"podSelector"}, "a selector of namespaces or addresses: not evaluated here"
    # A selector of pods alone means those in the namespace of the policy.
    return policy["metadata"]["namespace"] == pod["metadata"]["namespace"] and _matches(peer["podSelector"], pod)


def _has_port(rule: dict[str, Any], port: int) -> bool:
    return "ports" not in rule or port in [entry["port"] for entry in rule["ports"]]


def _matches(selector: dict[str, Any], pod: dict[str, Any]) -> bool:
    assert selector.keys() == {"matchLabels"}, "expressions are not evaluated here"
    return selector["matchLabels"].items() <= pod["metadata"].get("labels", {}).items()
