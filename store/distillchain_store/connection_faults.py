"""Why a connection failed: certificates, TLS and proxies. Shared by the S3 client and the hub client."""

from __future__ import annotations

import os
import ssl
from urllib.parse import urlsplit
from urllib.request import proxy_bypass

from distillchain_store.errors import causes

# X509_V_ERR_* of OpenSSL's x509_vfy.h; the ssl module has no names for them.
NOT_YET_VALID, EXPIRED, HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH = 9, 10, 62, 64
# What OpenSSL reports when the other side answers in plain text; the name differs between its versions.
PLAIN_TEXT_REASONS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "PACKET_LENGTH_TOO_LONG"}
# OpenSSL's reasons for a CA file that it can open but that holds no valid PEM certificate.
BAD_BUNDLE_REASONS = {"NO_CERTIFICATE_OR_CRL_FOUND", "BAD_BASE64_DECODE", "PEM_LIB"}


def tls_fault(error: BaseException, *, bundle_variable: str) -> str | None:
    """What is wrong with a server's TLS and how to correct it; None when retrying may help, or TLS is not the cause.

    Args:
        bundle_variable: the environment variable that gives this client a CA bundle.
    """
    for cause in causes(error, with_suppressed=True):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate_fault(cause, bundle_variable)
        if type(cause).__name__ == "CertificateError":  # urllib3's own, of a host name that does not match
            return _other_host(str(cause))
        if isinstance(cause, ssl.SSLError) and cause.reason in PLAIN_TEXT_REASONS:
            return "it answers without TLS; write http:// instead of https://, or name its TLS port"
    return None


def bundle_fault(error: BaseException, *, bundle_variable: str) -> str | None:
    """Why the CA bundle of this machine cannot be read; None when that is not the cause."""
    for cause in causes(error, with_suppressed=True):
        # A bundle that cannot be opened is an OSError; one that cannot be parsed is an SSLError.
        if isinstance(cause, FileNotFoundError | PermissionError) or (
            isinstance(cause, ssl.SSLError) and cause.reason in BAD_BUNDLE_REASONS
        ):
            why = cause.strerror or type(cause).__name__
            return f"the CA bundle cannot be read ({why}); set {bundle_variable} to a file of PEM certificates"
    return None


def _certificate_fault(error: ssl.SSLCertVerificationError, bundle_variable: str) -> str:
    if error.verify_code == EXPIRED:
        return "its TLS certificate has expired; renew it"
    if error.verify_code == NOT_YET_VALID:
        return "its TLS certificate is not valid yet; correct the certificate or this machine's clock"
    if error.verify_code in (HOSTNAME_MISMATCH, IP_ADDRESS_MISMATCH):
        return _other_host(error.verify_message)
    return (
        f"its TLS certificate is not trusted ({error.verify_message}); mount the certificate of the authority that "
        f"signed it and set {bundle_variable} to that file"
    )


def _other_host(reason: str) -> str:
    return f"its TLS certificate is for another host ({reason}); use a host name of the certificate"


def proxy_variable(url: str) -> str | None:
    """The environment variable whose proxy requests to `url` go through; None: they go directly."""
    address = urlsplit(url)
    if not address.scheme or proxy_bypass(address.netloc):
        return None
    # urllib, which botocore and httpx ask for proxies, prefers the lower-case name where both are set.
    name = f"{address.scheme}_proxy"
    return next((variable for variable in (name, name.upper()) if os.environ.get(variable)), None)
