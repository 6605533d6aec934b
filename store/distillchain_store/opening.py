"""Opens a store by its URI. boto3 is imported only for s3://: it takes half a second."""

from __future__ import annotations

from collections.abc import Mapping

from distillchain_store.cache import FileCache
from distillchain_store.folder import FileStore
from distillchain_store.store import Store


def open_store(
    uri: str,
    *,
    endpoint_url: str | None,
    region: str | None,
    encryption: Mapping[str, str | bool] | None = None,
    field: str = "spec.storage.uri",
    cache: FileCache | None = None,
) -> Store:
    """The store at an s3:// or file:// URI.

    Args:
        encryption: fields of S3's uploads, such as ServerSideEncryption.
        field: where the URI stands in the chain; messages name it.
        cache: where downloads from S3 are kept and looked for.
    """
    if uri.startswith("s3://"):
        from distillchain_store.s3.store import S3Store

        return S3Store(uri, endpoint_url=endpoint_url, region=region, encryption=encryption, field=field, cache=cache)
    return FileStore(uri, field=field)
