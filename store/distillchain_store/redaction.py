"""What may stand in no message, log or status."""

from __future__ import annotations

import os
import re

SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
SECRET_CHARS = 8  # what is shorter is a word of the sentence, not a secret
USERINFO = re.compile(r"(https?://|Invalid endpoint: )[^/\s]*@", re.IGNORECASE)
"""Of an address, also of one that botocore refuses for having no scheme. `hf://model@revision` stays as it is."""


def without_secrets(text: str) -> str:
    """`text` with the names of the secret variables in place of their values, and addresses without user names."""
    for name in SECRET_VARIABLES:
        if len(secret := os.environ.get(name, "")) >= SECRET_CHARS:
            text = text.replace(secret, f"<{name}>")
    return without_userinfo(text)


def without_userinfo(text: str) -> str:
    """`https://bob:password@s3.example` as `https://s3.example`."""
    return USERINFO.sub(r"\1", text)
