"""Selection and patience in the spec: what a stage inherits, and what is in its digest."""

from __future__ import annotations

import copy
from typing import Any

from bad_chains import GOOD
from distillchain_api.graph import PlannedStage, build_plan
from distillchain_api.resource.spec import parse_chain


def stages(template: dict[str, Any], stage: dict[str, Any] | None = None) -> tuple[PlannedStage, ...]:
    document = copy.deepcopy(GOOD)
    document["spec"]["template"] = {"training": template}
    if stage is not None:
        document["spec"]["stages"][0]["training"] = stage
    return build_plan(parse_chain(document)).stages


def test_a_stage_may_turn_off_what_the_template_states():
    first, second = stages({"selection": "Best", "patience": 2}, {"selection": "Last", "patience": 0})

    chosen = [(order.training.selection, order.training.patience) for order in (first.work_order, second.work_order)]
    assert chosen == [("Last", 0), ("Best", 2)]


def test_only_another_choice_than_the_default_is_in_the_digest():
    """Both decide the weights, and every later stage is taught by them."""
    plain = [stage.digest for stage in stages({})]

    assert [stage.digest for stage in stages({"selection": "Last", "patience": 0})] == plain
    best, patient, later = (
        [stage.digest for stage in stages({}, stage)]
        for stage in ({"selection": "Best"}, {"selection": "Best", "patience": 2}, {"selection": "Best", "patience": 3})
    )
    assert len({plain[0], best[0], patient[0], later[0]}) == 4
    assert len({plain[1], best[1], patient[1], later[1]}) == 4
