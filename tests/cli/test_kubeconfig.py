"""How a command finds and reads the kubeconfig of its user, and what it sends then."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import yaml

from cli.parts import distillchain_here, write_chain
from cluster.certificates import Authority
from distillchain_cli.api_server import kubeconfig
from store.gateway import Answer, Forward, Gateway, Request

KUBECONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
}


def of_user(**user: object) -> str:
    """A kubeconfig whose current context has this user."""
    return yaml.safe_dump({**KUBECONFIG, "current-context": "x", "users": [{"name": "u", "user": user}]})


def plugin(script: str, **more: str) -> dict[str, object]:
    return {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script], **more}


def of_cluster(**cluster: str | bool) -> str:
    """A kubeconfig whose current context has a cluster with these fields."""
    of = {"server": "https://127.0.0.1:1", **cluster}
    return yaml.safe_dump({**KUBECONFIG, "current-context": "x", "clusters": [{"name": "c", "cluster": of}]})


@pytest.mark.parametrize(
    "variables, arguments, want",
    [
        ({"KUBECONFIG": "nope"}, [], "KUBECONFIG: nope does not exist; correct KUBECONFIG or use --kubeconfig"),
        (
            {"KUBECONFIG": "nope:neither"},
            [],
            "KUBECONFIG: nope, neither do not exist; correct KUBECONFIG or use --kubeconfig",
        ),
        ({}, ["--kubeconfig", "nope"], "--kubeconfig: nope does not exist; name an existing file"),
        ({}, [], "kubeconfig: ~/.kube/config does not exist; set KUBECONFIG or use --kubeconfig"),
    ],
)
def test_a_missing_kubeconfig_is_named_with_its_origin(
    tmp_path: Path, variables: dict[str, str], arguments: list[str], want: str
):
    done = distillchain_here("list", *arguments, cwd=tmp_path, HOME=str(tmp_path), **variables)

    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{want}\n")


CHECK = "check the address in the kubeconfig, and the network"


@pytest.mark.parametrize(
    "content, arguments, want",
    [
        pytest.param(
            "a: [", [], "KUBECONFIG: config is not a kubeconfig (ParserError); use another file", id="not YAML"
        ),
        pytest.param("text", [], "KUBECONFIG: config is not a kubeconfig (TypeError); use another file", id="text"),
        pytest.param(
            yaml.safe_dump(KUBECONFIG),
            [],
            "KUBECONFIG: config: there is no current-context; correct the file or use another context",
            id="no current context",
        ),
        pytest.param(
            yaml.safe_dump(KUBECONFIG), ["--context", "y"], "--context: got y, expected one of x", id="no such context"
        ),
        pytest.param(
            yaml.safe_dump(KUBECONFIG),
            ["--context", "x"],
            f"the API server https://127.0.0.1:1 cannot be reached: Connection refused; {CHECK}",
            id="a context that is not the current one",
        ),
        pytest.param(
            of_user(exec=plugin("echo session has expired >&2; exit 3")),
            [],
            "KUBECONFIG: config: the credential plugin sh gave no credentials (exec: process returned 3. session has "
            "expired); log in again, or run the plugin to see why",
            id="a credential plugin fails",
        ),
        pytest.param(
            of_user(exec={**plugin(""), "command": "no-such-plugin", "installHint": "Get it from\n the shop."}),
            [],
            "KUBECONFIG: config: the credential plugin no-such-plugin does not exist; Get it from the shop.",
            id="a credential plugin is missing",
        ),
        pytest.param(
            of_cluster(**{"proxy-url": "socks5://bob:secret@127.0.0.1:2"}),
            [],
            "KUBECONFIG: config: proxy-url: got socks5://127.0.0.1:2, expected http:// or https://; SOCKS proxies "
            "cannot be used",
            id="a SOCKS proxy",
        ),
        pytest.param(
            of_cluster(**{"proxy-url": "http://127.0.0.1:2"}),
            [],
            "the API server https://127.0.0.1:1 cannot be reached through the proxy of HTTPS_PROXY or the kubeconfig: "
            "Connection refused; correct it, or add the host to NO_PROXY",
            id="its proxy does not answer",
        ),
    ],
)
def test_a_kubeconfig_that_cannot_be_used_is_explained(tmp_path: Path, content: str, arguments: list[str], want: str):
    (tmp_path / "config").write_text(content)

    done = distillchain_here("list", *arguments, cwd=tmp_path, KUBECONFIG="config")

    assert done.stdout == ""
    assert done.stderr.replace("[Errno 111] ", "") == f"{want}\n"


def test_a_proxy_that_does_not_answer_is_named(tmp_path: Path):
    (tmp_path / "config").write_text(yaml.safe_dump({**KUBECONFIG, "current-context": "x"}))
    proxy = {"KUBECONFIG": "config", "HTTPS_PROXY": "http://127.0.0.1:2", "NO_PROXY": "", "no_proxy": ""}

    done = distillchain_here("list", cwd=tmp_path, **proxy)

    assert done.stderr.replace("[Errno 111] ", "") == (
        "the API server https://127.0.0.1:1 cannot be reached through the proxy of HTTPS_PROXY or the kubeconfig: "
        "Connection refused; correct it, or add the host to NO_PROXY\n"
    )


def answers_no_chains(request: Request, _forward: Forward) -> Answer:
    return Answer(200, b'{"metadata": {"resourceVersion": "1"}, "items": []}')


@pytest.mark.parametrize(
    "arguments, want",
    [([], ("jane", "readers")), (["--as", "joe"], ("joe", None))],
)
def test_a_user_acts_as_the_kubeconfig_says_unless_an_option_does(
    tmp_path: Path, arguments: list[str], want: tuple[str, str | None]
):
    user = {"token": "t", "as": "jane", "as-groups": ["readers"]}
    with Gateway("", answers_no_chains) as server:
        (tmp_path / "config").write_text(of_user(**user).replace("https://127.0.0.1:1", server.endpoint))
        distillchain_here("list", *arguments, cwd=tmp_path, KUBECONFIG="config")

    sent = server.requests[0].headers
    assert (sent["impersonate-user"], sent.get("impersonate-group")) == want


@pytest.mark.parametrize("of_environment", [False, True])
def test_requests_go_through_the_proxy_with_the_name_and_password_of_its_url(tmp_path: Path, of_environment: bool):
    with Gateway("", answers_no_chains) as proxy:
        url = proxy.endpoint.replace("://", "://ann:p%40ss@")
        fields = {"server": "http://cluster.invalid"} | ({} if of_environment else {"proxy-url": url})
        (tmp_path / "config").write_text(of_cluster(**fields))
        # That of the kubeconfig takes precedence over NO_PROXY too, as in kubectl.
        proxies = {"http_proxy": url if of_environment else "", "no_proxy": "" if of_environment else "*"}
        variables = proxies | {name.upper(): value for name, value in proxies.items()}
        done = distillchain_here("list", cwd=tmp_path, KUBECONFIG="config", **variables)

    assert (done.returncode, done.stderr) == (0, "there are no chains in namespace default\n")
    login = proxy.requests[0].headers["proxy-authorization"].removeprefix("Basic ")
    assert base64.b64decode(login) == b"ann:p@ss"


def test_the_proxy_for_http_is_not_used_for_https(tmp_path: Path):
    (tmp_path / "config").write_text(of_cluster())
    proxies = {"http_proxy": "http://127.0.0.1:2", "https_proxy": "", "no_proxy": ""}
    variables = proxies | {name.upper(): value for name, value in proxies.items()}

    done = distillchain_here("list", cwd=tmp_path, KUBECONFIG="config", **variables)

    assert "the API server https://127.0.0.1:1 cannot be reached: [Errno 111] Connection refused; check" in done.stderr


@pytest.mark.parametrize(
    "fields, want",
    [
        pytest.param({"insecure-skip-tls-verify": True}, "there are no chains in namespace default", id="not verified"),
        pytest.param(
            {},
            "the API server {} cannot be reached: its TLS certificate is not trusted (unable to get local issuer "
            "certificate); mount the certificate of the authority that signed it and set certificate-authority of the "
            "kubeconfig to that file",
            id="not trusted",
        ),
    ],
)
def test_a_certificate_is_trusted_as_the_kubeconfig_says(tmp_path: Path, fields: dict[str, bool], want: str):
    certificate = Authority(tmp_path).issue("server", common_name="api", hosts=["127.0.0.1"])
    with Gateway("", answers_no_chains, certificate=certificate) as server:
        (tmp_path / "config").write_text(of_cluster(server=server.endpoint, **fields))
        done = distillchain_here("list", cwd=tmp_path, KUBECONFIG="config")

    assert done.stderr == want.format(server.endpoint) + "\n"


@pytest.mark.parametrize("command", [["list"], ["validate", "chain.yaml", "--dry-run", "server"]])
def test_credentials_that_the_api_server_does_not_know_get_a_remedy(tmp_path: Path, command: list[str]):
    write_chain(tmp_path)
    with Gateway("", lambda *_: Answer(401, b'{"message": "Unauthorized"}')) as server:
        (tmp_path / "config").write_text(of_cluster(server=server.endpoint))
        done = distillchain_here(*command, cwd=tmp_path, KUBECONFIG="config")

    assert (done.returncode, done.stderr) == (
        1,
        "the API server refused: Unauthorized; the credentials of the kubeconfig are missing, wrong or expired: log in "
        "again\n",
    )


def test_a_pod_without_a_kubeconfig_uses_its_service_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kubeconfig, "SERVICE_ACCOUNT", tmp_path)
    certificate = Authority(tmp_path).issue("server", common_name="api", hosts=["127.0.0.1"])
    (tmp_path / "token").write_text("of-the-pod")
    (tmp_path / "namespace").write_text("ml")
    with Gateway("", answers_no_chains, certificate=certificate) as server:
        of_pod = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(server.port)}
        trusted = distillchain_here("list", cwd=tmp_path, HOME=str(tmp_path), **of_pod)
        (tmp_path / "ca.crt").unlink()
        without_ca = distillchain_here("list", cwd=tmp_path, HOME=str(tmp_path), **of_pod)

    assert (trusted.returncode, trusted.stderr) == (0, "there are no chains in namespace ml\n")
    assert server.requests[0].headers["authorization"] == "bearer of-the-pod"
    assert (without_ca.returncode, without_ca.stderr) == (
        2,
        "the service account of this pod cannot be used (Service certification file does not exist.); use --kubeconfig\n",
    )
