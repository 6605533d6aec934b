"""Names that the library datasets keeps beside a column of numbers (ClassLabel), on the hub and in Parquet files."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any


def class_names(features: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """The names of a column's numbers, or of those in its lists; none where they only count the classes.

    Args:
        features: of each column, as `datasets.Features.to_dict` gives them.
    """
    wanted = unicodedata.normalize("NFC", column)
    feature = next((it for name, it in features.items() if unicodedata.normalize("NFC", name) == wanted), None)
    # A list has the feature of its items: Sequence(ClassLabel), List(ClassLabel), or [ClassLabel] of older releases.
    if isinstance(feature, list) and feature:
        feature = feature[0]
    if isinstance(feature, Mapping) and isinstance(feature.get("feature"), Mapping):
        feature = feature["feature"]
    names = tuple(feature.get("names") or ()) if isinstance(feature, Mapping) else ()
    # Names "0", "1", ... say no more than the numbers.
    return () if names == tuple(map(str, range(len(names)))) else names
