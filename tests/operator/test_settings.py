"""Settings of the operator, and the messages for invalid ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distillchain_operator.main import EXIT_BAD_SETTINGS, main
from distillchain_operator.settings import BadSetting, Settings


def test_the_environment_is_read_and_other_variables_are_ignored():
    got = Settings.from_environment(
        {
            "DISTILLCHAIN_NAMESPACES": "ml, nlp,",
            "DISTILLCHAIN_TRAINER_IMAGE": "x:1",
            "DISTILLCHAIN_RESYNC_S": "",
            "DISTILLCHAIN_UPDATE_GOLDEN": "1",
            "DISTILLCHAIN_KEEP_TEXTS": "0",
            "DISTILLCHAIN_OPERATOR_SERVICE_HOST": "10.96.0.7",
            "DISTILLCHAIN_OPERATOR_PORT_8080_TCP": "tcp://10.96.0.7:8080",
            "PATH": "/bin",
        }
    )
    assert got == Settings(namespaces=("ml", "nlp"), trainer_image="x:1")


def test_all_bad_settings_are_reported_together():
    with pytest.raises(BadSetting) as refused:
        Settings.from_environment(
            {
                "DISTILLCHAIN_RESYNC_S": "-1",
                "DISTILLCHAIN_LOG_LEVEL": "loud",
                "DISTILLCHAIN_NAMESPACE": "ml",
                "DISTILLCHAIN_LEASE": "operator",
            }
        )
    assert str(refused.value).splitlines() == [
        "DISTILLCHAIN_LEASE: got 'operator', expected NAMESPACE/NAME of a Lease",
        "DISTILLCHAIN_LOG_LEVEL: got 'loud', expected one of debug, info, warning, error",
        "DISTILLCHAIN_NAMESPACE: unknown setting; did you mean DISTILLCHAIN_NAMESPACES?",
        "DISTILLCHAIN_RESYNC_S: got '-1', expected a number of seconds above 0",
    ]


def test_the_variables_of_a_service_named_distillchain_metrics_are_no_settings():
    assert Settings.from_environment({"DISTILLCHAIN_METRICS_PORT": "tcp://10.96.0.7:9090"}).metrics_port == 0
    assert Settings.from_environment({"DISTILLCHAIN_METRICS_PORT": "9090"}).metrics_port == 9090


def test_an_argument_takes_precedence_over_the_variable_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DISTILLCHAIN_RESYNC_S", "60")
    assert main(["--resync-s", "never", "--log-level=loud"]) == EXIT_BAD_SETTINGS
    assert capsys.readouterr().err.splitlines() == [
        "DISTILLCHAIN_LOG_LEVEL: got 'loud', expected one of debug, info, warning, error",
        "DISTILLCHAIN_RESYNC_S: got 'never', expected a number of seconds above 0",
    ]


def test_a_misspelt_argument_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--resync=60"])
    assert ended.value.code == EXIT_BAD_SETTINGS
    assert "unrecognized arguments: --resync=60" in capsys.readouterr().err


def test_a_missing_kubeconfig_is_reported_with_the_remedy(tmp_path: Path):
    """As a process: main() would leave its signal handler behind."""
    environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(tmp_path / "gone")}
    argv = [sys.executable, "-m", "distillchain_operator"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_BAD_SETTINGS
    want = f"KUBECONFIG: got '{tmp_path}/gone', expected the path of a kubeconfig with a current context"
    assert want in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "template, want",
    [
        pytest.param(
            "nodeSelector: {gpu: a100}",
            "nodeSelector: unknown field; did you mean pod.spec.nodeSelector?",
            id="the spec level is missing",
        ),
        pytest.param("metadata: {lables: {}}", "metadata.lables: unknown field; did you mean labels?", id="misspelt"),
        pytest.param("spec: {tolerations: gpu}", 'spec.tolerations: got "gpu", expected a list', id="a wrong type"),
        pytest.param("spec: {containers: [{image: x}]}", "spec.containers[0].name: missing; add it", id="no name"),
    ],
)
def test_a_fault_in_the_operators_pod_template_is_found_at_its_start(tmp_path: Path, template: str, want: str):
    path = tmp_path / "pod.yaml"
    path.write_text(template)
    with pytest.raises(BadSetting) as refused:
        Settings.from_environment({"DISTILLCHAIN_POD_TEMPLATE": str(path)})
    assert str(refused.value) == (
        f"DISTILLCHAIN_POD_TEMPLATE: got '{path}', expected a PodTemplateSpec in that file; {want}"
    )


def test_a_field_below_spec_that_only_a_newer_cluster_knows_is_left_to_its_api_server(tmp_path: Path):
    path = tmp_path / "pod.yaml"
    path.write_text("spec: {gangName: a}")
    settings = Settings.from_environment({"DISTILLCHAIN_POD_TEMPLATE": str(path)})
    assert settings.pod_template == {"spec": {"gangName": "a"}}


def test_the_timing_of_the_lease_can_be_set_and_must_let_only_one_operator_work():
    timing = {"DISTILLCHAIN_LEASE_DURATION_S": "60", "DISTILLCHAIN_LEASE_DEADLINE_S": "40"}
    assert Settings.from_environment(timing) == Settings(lease_duration_s=60, lease_deadline_s=40.0)

    with pytest.raises(BadSetting) as refused:
        Settings.from_environment({"DISTILLCHAIN_LEASE_DEADLINE_S": "15"})
    assert str(refused.value) == (
        "DISTILLCHAIN_LEASE_DEADLINE_S: got 15, expected a number above 1.2 times LEASE_RETRY_S (2) "
        "and below LEASE_DURATION_S (15)"
    )
    with pytest.raises(BadSetting, match="DISTILLCHAIN_LEASE_DEADLINE_S: got 10"):
        Settings.from_environment({"DISTILLCHAIN_LEASE_RETRY_S": "9"})


def test_sigterm_ends_an_operator_that_still_imports_its_modules():
    """Process 1 of a container ignores it until it is handled, and would then take the Lease and be killed.

    Some code that is imported ignores all errors, SystemExit included.
    """
    program = """
import os, runpy, signal, sys

class SigtermAtImport:
    def find_spec(self, name, *_):
        if name == "kopf":
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except BaseException:
                pass

signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.meta_path.insert(0, SigtermAtImport())
sys.argv = ["distillchain_operator"]
runpy.run_module("distillchain_operator", run_name="__main__")
"""
    environment = os.environ | {"DISTILLCHAIN_RESYNC_S": "never"}  # an operator that goes on exits with 2
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")
