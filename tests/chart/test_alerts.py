"""The alerts and panels of the chart, evaluated by promtool over series that an operator could have."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from chart.helm import documents, named, render, values_of
from cluster.prerequisites import ensure_program
from docs.blocks import REPOSITORY, anchors

pytestmark = pytest.mark.cluster  # helm is built with the cluster's binaries

OPERATOR = 'namespace="distillchain-system",pod="a"'
STANDBY = 'namespace="distillchain-system",pod="b"'
SINCE = "distillchain_stage_since_timestamp_seconds"


class Case(NamedTuple):
    """Series for which an alert fires, and others for which it does not."""

    fires: dict[str, str]
    """Series -> values, one for each minute, in promtool's notation."""
    silent: dict[str, str]
    labels: dict[str, str]
    summary: str


CASES = {
    "DistillchainOperatorDown": Case(
        fires={"up": "0x90"},
        silent={f"distillchain_build_info{{{OPERATOR}}}": "1x90"},
        labels={},
        summary="Prometheus scrapes no distillchain operator.",
    ),
    "DistillchainNoLeader": Case(
        fires={f"distillchain_leader{{{OPERATOR}}}": "0x90", f"distillchain_leader{{{STANDBY}}}": "0x90"},
        silent={f"distillchain_leader{{{OPERATOR}}}": "1x90", f"distillchain_leader{{{STANDBY}}}": "0x90"},
        labels={"namespace": "distillchain-system"},
        summary="No distillchain operator in distillchain-system leads.",
    ),
    "DistillchainChainStalled": Case(
        fires={'distillchain_chain_stalled{namespace="ml",chain="relay",reason="GateNotMet"}': "1x90"},
        silent={'distillchain_chain_stalled{namespace="ml",chain="relay",reason="GateNotMet"}': "_x88 1 1"},
        labels={"namespace": "ml", "chain": "relay", "reason": "GateNotMet"},
        summary="Chain ml/relay is stalled: GateNotMet.",
    ),
    "DistillchainStagePending": Case(
        fires={f'{SINCE}{{namespace="ml",chain="relay",stage="mini",state="pending"}}': "0x90"},
        silent={f'{SINCE}{{namespace="ml",chain="relay",stage="mini",state="running"}}': "0x90"},
        labels={"namespace": "ml", "chain": "relay", "stage": "mini"},
        summary="Stage mini of ml/relay has waited for 1h 30m 0s.",
    ),
    "DistillchainTimeLost": Case(
        fires={'distillchain_stage_pods_replaced_total{namespace="ml"}': "0x50 1 2 3 4 5x36"},
        silent={'distillchain_stage_pods_replaced_total{namespace="ml"}': "0x50 1 1x39"},
        labels={"namespace": "ml"},
        summary="5 pods of chains in ml were replaced within an hour.",
    ),
    "DistillchainReconcileFails": Case(
        fires={f"distillchain_queue_failing{{{OPERATOR}}}": "2x90"},
        silent={f"distillchain_queue_failing{{{OPERATOR}}}": "0x90"},
        labels={"namespace": "distillchain-system", "pod": "a"},
        summary="The operator cannot reconcile 2 chains.",
    ),
    "DistillchainResyncOverdue": Case(
        fires={
            f"distillchain_last_resync_timestamp_seconds{{{OPERATOR}}}": "0x90",
            f"distillchain_leader{{{OPERATOR}}}": "1x90",
        },
        silent={  # an operator on standby lists nothing
            f"distillchain_last_resync_timestamp_seconds{{{OPERATOR}}}": "0x90",
            f"distillchain_leader{{{OPERATOR}}}": "0x90",
        },
        labels={"namespace": "distillchain-system", "pod": "a"},
        summary="The operator has had no complete list of chains for too long.",
    ),
    "DistillchainApiErrors": Case(
        fires={
            f'distillchain_api_requests_total{{{OPERATOR},code="200"}}': "0+30x90",
            f'distillchain_api_requests_total{{{OPERATOR},code="0"}}': "0+10x90",
        },
        silent={
            f'distillchain_api_requests_total{{{OPERATOR},code="200"}}': "0+30x90",
            f'distillchain_api_requests_total{{{OPERATOR},code="404"}}': "0+10x90",
            f'distillchain_api_requests_total{{{OPERATOR},code="500"}}': "0+1x90",
        },
        labels={},
        summary="25% of the operator's requests fail.",
    ),
}


def promtool(*args: str) -> subprocess.CompletedProcess[str]:
    program = ensure_program("promtool", packages=("prometheus",))
    return subprocess.run([program, *args], text=True, capture_output=True, check=False)


@pytest.fixture(scope="module")
def rules() -> list[dict[str, Any]]:
    groups = named(documents(render(*values_of("everything"))), "PrometheusRule")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def write_rules(folder: Path, rules: list[dict[str, Any]]) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "distillchain", "rules": rules}]}))
    return path


def test_every_alert_has_a_case_and_a_section_of_the_page(rules: list[dict[str, Any]]):
    assert {rule["alert"] for rule in rules} == set(CASES)
    assert anchors("docs/alerts.md") >= {rule["annotations"]["runbook_url"].partition("#")[2] for rule in rules}
    values = yaml.safe_load((REPOSITORY / "charts" / "distillchain" / "values.yaml").read_text())
    assert values["metrics"]["prometheusRule"]["runbookUrl"].endswith("/docs/alerts.md")


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_the_right_series_only(alert: str, rules: list[dict[str, Any]], tmp_path: Path):
    rule, case = next(rule for rule in rules if rule["alert"] == alert), CASES[alert]
    description = re.sub(
        r"{{ \$labels\.(\w+) }}", lambda found: case.labels[found[1]], rule["annotations"]["description"]
    )
    description = description.replace('{{ "', "").replace('" }}', "")
    annotations = {
        "summary": case.summary,
        "description": description,
        "runbook_url": f"https://docs.example/alerts.md#{alert.lower()}",
    }
    firing = [{"exp_labels": {**rule["labels"], **case.labels}, "exp_annotations": annotations}]

    def a_test(series: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": "90m", "alertname": alert, "exp_alerts": expected}],
        }

    tests = [a_test(case.fires, firing), a_test(case.silent, [])]
    path = tmp_path / "test.yaml"
    path.write_text(
        yaml.safe_dump({"rule_files": [str(write_rules(tmp_path, rules))], "evaluation_interval": "1m", "tests": tests})
    )
    done = promtool("test", "rules", str(path))
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_can_parse_the_query_of_every_panel(tmp_path: Path):
    dashboard = named(documents(render(*values_of("everything"))), "ConfigMap", "-dashboard")["data"]
    panels = json.loads(dashboard["distillchain.json"])["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    queries = [expression.replace("$__rate_interval", "5m").replace("$namespace", "ml") for expression in queries]
    rules = [{"record": f"panel:{index}", "expr": expression} for index, expression in enumerate(queries)]
    done = promtool("check", "rules", str(write_rules(tmp_path, rules)))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
