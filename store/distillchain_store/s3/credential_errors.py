"""What it means when no credentials can be had: from the environment, a profile, a login, or the role of a pod."""

from __future__ import annotations

import botocore.exceptions as aws

from distillchain_store.errors import StorageDenied, StoreError
from distillchain_store.redaction import without_userinfo
from distillchain_store.s3.answer import PASSING_STATUS, Answer, CredentialsExpired, Transient

CREDENTIAL_OPERATIONS = {"AssumeRole", "AssumeRoleWithWebIdentity", "GetRoleCredentials", "CreateToken"}
"""Requests of botocore to STS and SSO, which give credentials. Their answers say nothing about the store."""
EXPIRED_CODES = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
LOGIN_ERRORS = (aws.SSOError, aws.TokenRetrievalError, aws.LoginError, aws.RefreshWithMFAUnsupportedError)


def of_credentials(error: Exception, uri: str) -> StoreError | None:
    """What an exception says about the credentials for a store; None: it is not about them."""
    why = without_userinfo(" ".join(str(error).split()))
    if isinstance(error, aws.CredentialRetrievalError | aws.MetadataRetrievalError):
        return Transient(
            f"spec.storage: the service or program that gives credentials for {uri} gave none ({why})",
            "log in again, or check the service account's role and its agent on the node",
        )
    # Not final: a user who logs in elsewhere meanwhile loses no trained student.
    if isinstance(error, LOGIN_ERRORS):
        return CredentialsExpired(
            f"spec.storage: the login that gives credentials for {uri} has expired ({why})",
            "log in again, for example with `aws sso login`",
        )
    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
        return StorageDenied(
            f"spec.storage: no credentials for {uri} ({why}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_PROFILE; in a cluster, name a Secret with these in secretRef, or give the service account a role"
        )
    return None


def of_credential_service(operation: str, answer: Answer, uri: str) -> StoreError:
    """What an answer of STS or SSO means.

    Args:
        operation: one of CREDENTIAL_OPERATIONS.
    """
    what = f"spec.storage: AWS gave no credentials for {uri} ({operation}: {answer.said})"
    if answer.code in EXPIRED_CODES:
        return CredentialsExpired(what, "log in again; in a pod, check that the kubelet renews the token of its volume")
    # AWS documents that this one may be repeated.
    passes = answer.code == "IDPCommunicationError" or "Throttl" in answer.code
    if passes or answer.status in PASSING_STATUS or answer.status >= 500:
        return Transient(what, "check the network and the role's identity provider")
    return StorageDenied(
        f"{what}; correct the role, which the service account or profile names, or the role's trust policy"
    )
