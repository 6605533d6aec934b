"""`template.tracking`: where the trainer logs its runs. Off by default, in no digest, and without credentials."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from distillchain_api.base import Document
from distillchain_api.faults import Expect
from distillchain_api.values import HTTP_ADDRESS, Text, without_slash

MAX_ADDRESS_CHARS = 1000

HttpAddress = Annotated[
    str,
    Field(pattern=f"^{HTTP_ADDRESS}$", max_length=MAX_ADDRESS_CHARS),
    AfterValidator(without_slash),
    Expect("http(s)://host[:port] without user or password", "credentials belong into the environment of the pod"),
]
TrackingUri = Annotated[
    str,
    Field(pattern=f"^({HTTP_ADDRESS}|file:///[!-~]+)$", max_length=MAX_ADDRESS_CHARS),
    AfterValidator(without_slash),
    Expect(
        "http(s)://host[:port] without user or password, or file:///absolute/path",
        "credentials belong into the environment of the pod",
    ),
]


class TensorBoard(Document):
    """Event files in the chain's store, below `tensorboard/<namespace>/<chain>`."""

    flush_seconds: Annotated[int, Field(ge=1, le=3600), Expect("a whole number from 1 to 3600")] = 30
    """How often the event file of a running stage is stored, at most; it is stored at the end as well."""


class Mlflow(Document):
    """Runs on an MLflow tracking server. MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or
    MLFLOW_TRACKING_TOKEN, come from the environment of the container `trainer`."""

    tracking_uri: TrackingUri | None = None
    """Address of the server, or file:///path of a mounted folder; empty: MLFLOW_TRACKING_URI of the environment."""
    experiment: Text | None = None
    """Name of the experiment, which is created if there is none; empty: `<namespace>/<chain>`."""


class Wandb(Document):
    """Runs on Weights & Biases. WANDB_API_KEY comes from the environment of the container `trainer`."""

    project: Text
    """Name of the project, which is created if there is none."""
    entity: Text | None = None
    """User or team; empty: the default of the API key."""
    base_url: HttpAddress | None = None
    """Address of your own server; empty: WANDB_BASE_URL of the environment, else the public service."""


class Tracking(Document):
    """Where each stage logs its recipe, losses and metrics. A tracker that fails never fails the stage."""

    tensor_board: TensorBoard | None = None
    mlflow: Mlflow | None = None
    wandb: Wandb | None = None

    @property
    def is_off(self) -> bool:
        """Whether nothing is logged."""
        return self == Tracking()
