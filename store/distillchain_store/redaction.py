"""Removes secrets from texts that become messages, logs or status."""

from __future__ import annotations

import os
import re

SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "WANDB_API_KEY",
)
SECRET_CHARS = 8  # a shorter value is more likely a word of the sentence than a secret
# Also matches an address without a scheme, which botocore quotes when it refuses it. hf://model@revision is left alone.
USERINFO = re.compile(r"(https?://|socks[45]?[ah]?://|Invalid endpoint: )[^/\s]*@", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """`text` with secret values replaced by the names of their variables, and without user names in addresses."""
    # By value, because a library may quote a secret without the name of its variable.
    for name in SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= SECRET_CHARS:
            text = text.replace(secret, f"<{name}>")
    return without_userinfo(text)


def without_userinfo(text: str) -> str:
    """`https://bob:password@s3.example` becomes `https://s3.example`."""
    return USERINFO.sub(r"\1", text)
