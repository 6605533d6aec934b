"""The DNS of the test cluster answers for pods of headless Services, and for nothing else."""

from __future__ import annotations

import struct

import pytest

from cluster.dns import answer, names_of

A, AAAA = 1, 28
SLICE = {
    "metadata": {"namespace": "ml", "labels": {"kubernetes.io/service-name": "relay"}},
    "endpoints": [
        {"hostname": "relay-0", "addresses": ["10.213.0.11"], "conditions": {"ready": True}},
        {"hostname": "relay-1", "addresses": ["10.213.0.12"], "conditions": {"ready": False}},
        {"addresses": ["10.213.0.13"], "conditions": {"ready": True}},
    ],
}
NAMES = {"relay-0.relay.ml.svc.cluster.local": "10.213.0.11"}


def test_names_are_those_of_ready_endpoints_with_a_host_name():
    assert names_of([SLICE]) == NAMES


@pytest.mark.parametrize(
    "name, kind, code, address",
    [
        pytest.param("relay-0.relay.ml.svc.cluster.local", A, 0, b"\x0a\xd5\x00\x0b", id="a pod"),
        pytest.param("Relay-0.relay.ML.svc.cluster.local", A, 0, b"\x0a\xd5\x00\x0b", id="in other case"),
        pytest.param("relay-0.relay.ml.svc.cluster.local", AAAA, 0, None, id="without IPv6"),
        pytest.param("relay-0.relay.ml.svc.ml.svc.cluster.local", A, 3, None, id="a search domain that is wrong"),
    ],
)
def test_an_answer_has_the_address_or_says_that_there_is_no_such_name(
    name: str, kind: int, code: int, address: bytes | None
):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    question = labels + b"\0" + struct.pack("!HH", kind, 1)
    response = answer(struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question, NAMES)
    identity, flags, questions, answers, *_ = struct.unpack_from("!HHHHHH", response)
    assert (identity, flags & 15, questions, answers) == (7, code, 1, int(address is not None))
    assert response[12 : 12 + len(question)] == question
    assert response[12 + len(question) :][-4:] == (address or b"")
