"""Plans of chains with `spec.evidence`."""

from __future__ import annotations

import copy
from typing import Any

from bad_chains import GOOD
from distillchain_api.graph import Plan, build_plan
from distillchain_api.resource.spec import parse_chain


def a_plan(evidence: dict[str, Any] | None, *, stages: list[dict[str, Any]] | None = None, **spec: Any) -> Plan:
    """mini and tiny, or these stages, with evidence."""
    document = copy.deepcopy(GOOD)
    document["spec"] |= {"evidence": evidence} if evidence is not None else {}
    document["spec"] |= spec | ({"stages": stages} if stages is not None else {})
    return build_plan(parse_chain(document))


def a_stage(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "student": {"model": f"hf://org/{name}"}, **fields}
