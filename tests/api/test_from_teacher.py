"""Which layers of a teacher a student starts with."""

from __future__ import annotations

import pytest

from distillchain_api.resource.from_teacher import FromTeacher


@pytest.mark.parametrize(
    "layers, of, want",
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),  # those that DistilBERT took of BERT
        (4, 12, [0, 4, 7, 11]),
        (3, 6, [0, 3, 5]),
        (2, 24, [0, 23]),
        (1, 3, [0]),
        (3, 3, [0, 1, 2]),
    ],
)
def test_layers_are_spaced_evenly_with_the_first_and_the_last(layers: int, of: int, want: list[int]):
    assert FromTeacher(layers=layers).chosen(of) == want
