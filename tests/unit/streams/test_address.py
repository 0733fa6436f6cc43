from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigurationError
from cloister.streams.address import (
    Address,
    TcpAddress,
    UnixAddress,
    VirtioAddress,
    VsockAddress,
    is_address,
    parse_address,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:8440", TcpAddress(host="127.0.0.1", port=8440)),
        ("tcp://[::1]:0", TcpAddress(host="::1", port=0)),
        ("tcp://kms.example.com:443", TcpAddress(host="kms.example.com", port=443)),
        ("unix:/run/cloister/worker.sock", UnixAddress(path="/run/cloister/worker.sock")),
        ("tcp://" + "a" * 63 + ".b:1", TcpAddress(host="a" * 63 + ".b", port=1)),
        ("vsock://3:8000", VsockAddress(cid=3, port=8000)),
        ("vsock://any:1", VsockAddress(cid=0xFFFFFFFF, port=1)),
        ("virtio:/dev/virtio-ports/cloister", VirtioAddress(path="/dev/virtio-ports/cloister")),
    ],
)
def test_every_form_is_read_and_written_alike(text: str, expected: Address) -> None:
    assert parse_address(text) == expected
    assert str(expected) == text
    assert is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:8440",
        "http://127.0.0.1:8440",
        "tcp:127.0.0.1:8440",
        "tcp://:8440",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:08440",
        "tcp://127.0.0.1:8440/path",
        "tcp://user@host:1",
        "tcp://::1:8440",
        "tcp://a..b:1",
        "tcp://-a:1",
        "tcp://" + "a" * 64 + ".b:1",
        "unix:relative",
        "unix://host/path",
        "unix:/folder/",
        "unix:/" + "x" * 107,
        "vsock://3",
        "vsock://-1:8000",
        "vsock://4294967295:1",
        "vsock://3:4294967295",
        "vsock://host:1",
        "virtio:",
        "virtio:port",
        "unix:/run/a\nb",
        "unix:/run/a\x00b",
        "TCP://127.0.0.1:1",
    ],
)
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_address(text)
    assert caught.value.code == "configuration.address"
    assert len(text) < 9 or text not in str(caught.value)


@given(st.text(max_size=60))
def test_no_text_does_anything_else(text: str) -> None:
    for prefix in ("", "tcp://", "unix:", "vsock://", "virtio:"):
        try:
            address = parse_address(prefix + text)
        except ConfigurationError:
            continue
        assert parse_address(str(address)) == address
