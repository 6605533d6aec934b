"""`template.job`: keys that the operator, the Job controller or Kueue give a meaning are refused, each with a remedy."""

from __future__ import annotations

from typing import Any

import pytest

from distillchain_api.faults import BadDocument
from distillchain_api.resource.job import JobTemplate

OURS = "the operator and the Job controller find Jobs by it; use a domain of your own, such as example.com/"


@pytest.mark.parametrize(
    "job, want",
    [
        ({"labels": {"distillchain.io/chain": "x"}}, f'labels.distillchain.io/chain: got "x", expected another key; {OURS}'),
        ({"annotations": {"distillchain.io/suspended": "true"}}, f'annotations.distillchain.io/suspended: got "true", expected another key; {OURS}'),
        ({"labels": {"app.kubernetes.io/managed-by": "me"}}, f'labels.app.kubernetes.io/managed-by: got "me", expected another key; {OURS}'),
        ({"labels": {"batch.kubernetes.io/job-name": "x"}}, f'labels.batch.kubernetes.io/job-name: got "x", expected another key; {OURS}'),
        ({"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}, 'labels.kueue.x-k8s.io/queue-name: got "gpus", expected another key; set queueName instead, so that the Job is created suspended'),
        ({"annotations": {"kueue.x-k8s.io/job-min-parallelism": "2"}}, 'annotations.kueue.x-k8s.io/job-min-parallelism: got "2", expected another key; a stage needs all of its pods; set parallelism.nodes instead'),
        ({"managedBy": "multikueue"}, 'managedBy: got "multikueue", expected a domain, a slash and a name, 63 characters at most; for example example.com/job-controller'),
        ({"labels": {"team": True}}, "labels.team: got true, expected text; in YAML, quote it: without quotation marks, YAML 1.1 and kubectl read y, yes and on as true"),
        ({"label": {"team": "nlp"}}, "label: unknown field; did you mean labels?"),
    ],
)  # fmt: skip
def test_what_a_job_cannot_have_is_refused_with_a_remedy(job: dict[str, Any], want: str):
    with pytest.raises(BadDocument) as refused:
        JobTemplate.parse(job)

    assert str(refused.value) == want


def test_keys_of_the_user_and_of_kueue_are_accepted():
    job = {
        "labels": {"example.com/team": "nlp", "kueue.x-k8s.io/priority-class": "low"},
        "annotations": {"note": "a b"},
    }

    assert JobTemplate.parse(job).to_document() == job
