"""Binary HTTP: published examples, what may be left out, and what must be refused."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from cloister.channel.bhttp import (
    TOO_LARGE,
    Data,
    EndOfContent,
    Fields,
    InformationalResponse,
    Limits,
    RequestDecoder,
    RequestEncoder,
    RequestHead,
    ResponseDecoder,
    ResponseEncoder,
    ResponseHead,
    encode_request,
    encode_request_parts,
    encode_response,
)
from cloister.channel.varint import encode_varint
from cloister.errors import MalformedError
from support.channel import HEX, cut, joined, load

REQUEST = {"method": str, "scheme": str, "authority": str, "path": str, "headers": [[str]]}
RESPONSE = {"status": int, "headers": [[str]]}
EXAMPLES = load(
    "bhttp/rfc9292.json",
    {
        "name": str,
        "message": HEX,
        "removable": int,
        "request": (None, REQUEST),
        "response": (None, RESPONSE),
        "informational": [RESPONSE],
        "content": str,
        "trailers": [[str]],
    },
)
HEAD = RequestHead(
    method=b"POST",
    scheme=b"https",
    authority=b"worker.example",
    path=b"/v1/chat/completions?x=1",
    headers=((b"content-type", b"application/json"), (b"empty", b"")),
)
TRAILERS = ((b"x-receipt", b"abc"),)


def decode_request(message: bytes, limits: Limits | None = None) -> list[Any]:
    decoder = RequestDecoder(limits or Limits())
    return joined(decoder.receive(message) + decoder.finish())


def decode_response(message: bytes, limits: Limits | None = None) -> list[Any]:
    decoder = ResponseDecoder(limits or Limits())
    return joined(decoder.receive(message) + decoder.finish())


def fields(lines: list[list[str]]) -> Fields:
    return tuple((name.encode(), value.encode()) for name, value in lines)


def expected(case: dict[str, Any]) -> list[Any]:
    events: list[Any] = [
        InformationalResponse(status=one["status"], headers=fields(one["headers"]))
        for one in case["informational"]
    ]
    if case["request"] is not None:
        control = {key: case["request"][key].encode() for key in REQUEST if key != "headers"}
        events.append(RequestHead(headers=fields(case["request"]["headers"]), **control))
    else:
        answer = case["response"]
        events.append(ResponseHead(status=answer["status"], headers=fields(answer["headers"])))
    if case["content"]:
        events.append(Data(data=case["content"].encode()))
    return [*events, EndOfContent(trailers=fields(case["trailers"]))]


def decode(case: dict[str, Any], message: bytes) -> list[Any]:
    return decode_response(message) if case["request"] is None else decode_request(message)


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case["name"])
def test_published_examples_decode_whole_and_byte_by_byte(case: dict[str, Any]) -> None:
    message = bytes.fromhex(case["message"])
    assert decode(case, message) == expected(case)
    decoder: Any = ResponseDecoder() if case["request"] is None else RequestDecoder()
    events = [event for byte in message for event in decoder.receive(bytes([byte]))]
    assert joined(events + decoder.finish()) == expected(case)


@pytest.mark.parametrize("case", EXAMPLES, ids=lambda case: case["name"])
def test_empty_parts_at_the_end_may_be_missing(case: dict[str, Any]) -> None:
    message = bytes.fromhex(case["message"])
    for removed in range(case["removable"] + 1):
        assert decode(case, message[: len(message) - removed]) == expected(case)


def test_a_message_may_end_before_a_section_and_nowhere_else() -> None:
    """RFC 9292 section 3.8. What ends before its content is a message without content."""
    field = lines((b"a", b"b"))
    start = b"\0" + CONTROL
    known = [start, b"\x04" + field, b"\x02hi", b"\x04" + field, b"\0"]
    streamed = [b"\2" + CONTROL, field + b"\0", b"\1h\1i\0", field + b"\0", b"\0"]
    for parts in (known, streamed):
        message = b"".join(parts)
        allowed = {sum(len(part) for part in parts[:count]) for count in range(1, len(parts) + 1)}
        for length in range(len(message) + 1):
            if length in allowed:
                decode_request(message[:length])
            else:
                with pytest.raises(MalformedError, match="ends where it may not"):
                    decode_request(message[:length])


def test_published_examples_are_what_the_encoders_write() -> None:
    known, indeterminate, response, trailers = (bytes.fromhex(case["message"]) for case in EXAMPLES)
    head, _ = expected(EXAMPLES[0])
    assert encode_request(head, b"") == known
    encoder = RequestEncoder()
    assert encoder.head(head) + encoder.end(pad=10) == indeterminate
    first, second, answer, content, _ = expected(EXAMPLES[2])
    responder = ResponseEncoder()
    written = responder.informational(first) + responder.informational(second)
    written += responder.head(answer) + responder.data(content.data) + responder.end()
    assert written.lower() == response.lower()  # the example writes "Accept-Encoding" as a value
    only, body, end = expected(EXAMPLES[3])
    assert encode_response(only, body.data, end.trailers) == trailers


def test_a_head_may_stand_alone() -> None:
    """RFC 9458 appendix A sends both: no header section, no content, no trailers."""
    message = bytes.fromhex("00034745540568747470730b6578616d706c652e636f6d012f")
    head = RequestHead(method=b"GET", scheme=b"https", authority=b"example.com", path=b"/")
    assert decode_request(message) == [head, EndOfContent()]
    assert decode_response(bytes.fromhex("0140c8")) == [ResponseHead(status=200), EndOfContent()]


def test_events_come_as_soon_as_they_can() -> None:
    encoder, decoder = ResponseEncoder(), ResponseDecoder()
    head = ResponseHead(status=200, headers=((b"a", b"b"),))
    assert decoder.receive(encoder.head(head)) == [head]
    for text in (b"data: 1\n\n", b"x" * 300):
        assert decoder.receive(encoder.data(text)) == [Data(data=text)]
    assert decoder.receive(encoder.end_content()) == []
    assert decoder.content_end == encoder.size
    assert decoder.receive(encoder.end(TRAILERS, pad=3)) == [EndOfContent(trailers=TRAILERS)]
    assert decoder.finish() == []


@pytest.mark.parametrize("sizes", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("body", [b"", b"x", b"y" * 100, bytes(20_000)])
def test_content_end_counts_up_to_the_end_of_the_content(sizes: int, body: bytes) -> None:
    known = encode_request(HEAD, body, TRAILERS, padding_to=512)
    prefix, _, suffix = encode_request_parts(HEAD, body, TRAILERS, padding_to=512)
    assert known == prefix + body + suffix and len(known) % 512 == 0
    encoder = RequestEncoder()
    streamed = encoder.head(HEAD) + encoder.data(body[:10]) + encoder.data(body[10:])
    streamed += encoder.end_content()
    end = encoder.size
    assert end == len(streamed)
    streamed += encoder.end(TRAILERS, pad_to=512)
    assert len(streamed) == encoder.size and len(streamed) % 512 == 0
    for message, content_end in ((known, len(prefix) + len(body)), (streamed, end)):
        decoder = RequestDecoder()
        events = [event for piece in cut(message, sizes) for event in decoder.receive(piece)]
        events = joined(events + decoder.finish())
        assert events[0] == HEAD and events[-1] == EndOfContent(trailers=TRAILERS)
        assert b"".join(event.data for event in events[1:-1]) == body  # type: ignore[union-attr]
        assert decoder.content_end == content_end


def test_content_end_of_a_message_cut_short_is_its_length() -> None:
    message = encode_request(HEAD, b"")[:-2]
    decoder = RequestDecoder()
    decoder.receive(message)
    assert decoder.content_end is None
    decoder.finish()
    assert decoder.content_end == len(message)


def test_integers_may_be_longer_than_needed() -> None:
    """RFC 9292 section 3: no smallest encoding is asked for."""

    def wide(value: int) -> bytes:
        return (value | 3 << 62).to_bytes(8, "big")

    control = b"".join(wide(len(part)) + part for part in (b"GET", b"https", b"", b"/"))
    lines = wide(1) + b"a" + wide(1) + b"b"
    known = wide(0) + control + wide(len(lines)) + lines + wide(2) + b"hi" + wide(0)
    streamed = wide(2) + control + lines + wide(0) + wide(2) + b"hi" + wide(0) + wide(0)
    head = RequestHead(
        method=b"GET", scheme=b"https", authority=b"", path=b"/", headers=((b"a", b"b"),)
    )
    for message in (known, streamed):
        assert decode_request(message) == [head, Data(data=b"hi"), EndOfContent()]


def lines(*pairs: tuple[bytes, bytes]) -> bytes:
    parts = (encode_varint(len(part)) + part for pair in pairs for part in pair)
    return b"".join(parts)


CONTROL = lines((b"GET", b"https"), (b"host", b"/"))


def request_with(headers: bytes = b"", control: bytes = CONTROL, trailers: bytes = b"") -> bytes:
    return b"\x02" + control + headers + b"\0\0" + trailers + b"\0"


def known_with(headers: bytes = b"", control: bytes = CONTROL, trailers: bytes = b"") -> bytes:
    return (
        b"\x00" + control + encode_varint(len(headers)) + headers
        + b"\0" + encode_varint(len(trailers)) + trailers
    )  # fmt: skip


@pytest.mark.parametrize("build", [request_with, known_with])
@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ((b"a b", b"v"), (b"a-b", b"v")),
        ((b"a:", b"v"), (b"a.", b"v")),
        ((b"\xc3\xa9", b"v"), (b"e", b"v")),
        ((b":method", b"GET"), (b":protocol", b"GET")),
        ((b":Method", b"GET"), (b":protocol", b"GET")),
        ((b":scheme", b"v"), (b"scheme", b"v")),
        ((b":authority", b"v"), (b"authority", b"v")),
        ((b":path", b"/"), (b"path", b"/")),
        ((b":status", b"200"), (b"status", b"200")),
        ((b":", b"v"), (b"x", b"v")),
        ((b"a", b"v\0"), (b"a", b"v")),
        ((b"a", b"v\r\nb: c"), (b"a", b"v b: c")),
        ((b"a", b"v\nw"), (b"a", b"v\tw")),
        ((b"a", b" v"), (b"a", b"v")),
        ((b"a", b"v\t"), (b"a", b"\xff")),
    ],
)
def test_fields_that_http_does_not_allow(
    build: Any, bad: tuple[bytes, bytes], good: tuple[bytes, bytes]
) -> None:
    decode_request(build(lines(good)))
    with pytest.raises(MalformedError):
        decode_request(build(lines(bad)))
    RequestEncoder().head(replaced(headers=(good,)))
    with pytest.raises(MalformedError):
        RequestEncoder().head(replaced(headers=(bad,)))


@pytest.mark.parametrize("build", [request_with, known_with])
def test_pseudo_fields_come_first_and_never_in_trailers(build: Any) -> None:
    pseudo, plain = (b":protocol", b"x"), (b"a", b"b")
    decode_request(build(lines(pseudo, plain)))
    with pytest.raises(MalformedError, match="out of place"):
        decode_request(build(lines(plain, pseudo)))
    decode_request(build(trailers=lines(plain)))
    with pytest.raises(MalformedError, match="out of place"):
        decode_request(build(trailers=lines(pseudo)))


def test_names_are_read_and_written_in_lower_case() -> None:
    events = decode_request(request_with(lines((b"X-Mixed", b"Value"))))
    assert events[0].headers == ((b"x-mixed", b"Value"),)
    encoder = ResponseEncoder()
    written = encoder.head(ResponseHead(status=200, headers=((b"X-Mixed", b"Value"),)))
    assert b"x-mixed" in written and b"Value" in written


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        ((b"", b"https", b"h", b"/"), (b"GET", b"https", b"h", b"/")),
        ((b"G T", b"https", b"h", b"/"), (b"get", b"https", b"h", b"/")),
        ((b"GET", b"", b"h", b"/"), (b"GET", b"http", b"h", b"/")),
        ((b"GET", b"1http", b"h", b"/"), (b"GET", b"coap+tcp", b"h", b"/")),
        ((b"GET", b"https", b"u@h", b"/"), (b"GET", b"https", b"[::1]:8", b"/")),
        ((b"GET", b"https", b"h h", b"/"), (b"GET", b"https", b"", b"/")),
        ((b"GET", b"https", b"h", b""), (b"GET", b"https", b"h", b"/?q")),
        ((b"GET", b"https", b"h", b"a"), (b"GET", b"https", b"h", b"/a")),
        ((b"GET", b"https", b"h", b"*"), (b"OPTIONS", b"https", b"h", b"*")),
        ((b"GET", b"https", b"h", b"/a b"), (b"GET", b"https", b"h", b"/a%20b")),
        ((b"GET", b"https", b"h", b"/a#b"), (b"GET", b"https", b"h", b"/a/b")),
        ((b"GET", b"https", b"h", b"/\r\n"), (b"GET", b"https", b"h", b"//")),
        ((b"CONNECT", b"https", b"h:1", b"/"), (b"CONNECT", b"", b"h:1", b"")),
        ((b"CONNECT", b"", b"", b""), (b"CONNECT", b"", b"h:443", b"")),
    ],
)
def test_request_control_data(bad: tuple[bytes, ...], good: tuple[bytes, ...]) -> None:
    for control, fine in ((good, True), (bad, False)):
        encoded = b"".join(encode_varint(len(part)) + part for part in control)
        method, scheme, authority, path = control
        head = RequestHead(method=method, scheme=scheme, authority=authority, path=path)
        if fine:
            assert decode_request(request_with(control=encoded))[0] == head
            encode_request(head, b"")
            continue
        with pytest.raises(MalformedError):
            decode_request(request_with(control=encoded))
        with pytest.raises(MalformedError):
            encode_request(head, b"")


@pytest.mark.parametrize("status", [0, 99, 600, 1000])
def test_status_codes_out_of_range(status: int) -> None:
    assert decode_response(b"\x03" + encode_varint(599) + b"\0\0\0")
    with pytest.raises(MalformedError, match="out of range"):
        decode_response(b"\x03" + encode_varint(status) + b"\0\0\0")
    with pytest.raises(MalformedError, match="status code"):
        ResponseEncoder().head(ResponseHead(status=status))


def test_final_and_informational_codes_are_told_apart() -> None:
    with pytest.raises(MalformedError, match="status code"):
        ResponseEncoder().head(ResponseHead(status=103))
    with pytest.raises(MalformedError, match="status code"):
        ResponseEncoder().informational(InformationalResponse(status=200))
    with pytest.raises(MalformedError, match="may not"):
        decode_response(b"\x03" + encode_varint(103) + b"\0")  # no final response follows


@pytest.mark.parametrize("framing", [1, 3, 4, 1 << 40])
def test_only_requests_are_read_as_requests(framing: int) -> None:
    message = request_with()
    decode_request(message)
    with pytest.raises(MalformedError, match="not a Binary HTTP request"):
        decode_request(encode_varint(framing) + message[1:])


@pytest.mark.parametrize("framing", [0, 2, 5])
def test_only_responses_are_read_as_responses(framing: int) -> None:
    decode_response(bytes.fromhex("0340c8"))
    with pytest.raises(MalformedError, match="not a Binary HTTP response"):
        decode_response(encode_varint(framing) + bytes.fromhex("40c8"))


@pytest.mark.parametrize("build", [request_with, known_with])
@pytest.mark.parametrize("place", [0, 5, 9])
def test_padding_is_zeros(build: Any, place: int) -> None:
    padding = bytearray(10)
    assert decode_request(build() + padding) == decode_request(build())
    padding[place] = 1
    with pytest.raises(MalformedError, match="padded"):
        decode_request(build() + padding)
    decoder = RequestDecoder()
    decoder.receive(build())
    with pytest.raises(MalformedError, match="padded"):
        for byte in padding:
            decoder.receive(bytes([byte]))


def test_a_known_section_ends_where_it_says() -> None:
    inside = lines((b"a", b"b"))
    decode_request(b"\0" + CONTROL + encode_varint(len(inside)) + inside + b"\0\0")
    for wrong in (len(inside) - 1, len(inside) - 2, len(inside) - 3):
        with pytest.raises(MalformedError):
            decode_request(b"\0" + CONTROL + encode_varint(wrong) + inside + b"\0\0")
    for section in (b"\x01", b"\x01a", b"\x01a\x02b", b"\x40", b"\0\0", b"\x01a\x40"):
        with pytest.raises(MalformedError):
            decode_request(known_with(section))


LARGE = 1 << 50  # more than a machine can allocate


@pytest.mark.parametrize(
    "message",
    [
        b"\0" + encode_varint(LARGE),
        b"\2" + encode_varint(LARGE),
        b"\0" + CONTROL + encode_varint(LARGE),
        b"\2" + CONTROL + encode_varint(LARGE),
        b"\2" + CONTROL + b"\1a" + encode_varint(LARGE),
        b"\0" + CONTROL + b"\0" + encode_varint(LARGE),
        b"\2" + CONTROL + b"\0" + encode_varint(LARGE),
        b"\0" + CONTROL + b"\0\0" + encode_varint(LARGE),
        b"\2" + CONTROL + b"\0\0" + encode_varint(LARGE),
    ],
)
def test_a_declared_length_is_refused_before_anything_is_kept_for_it(message: bytes) -> None:
    decoder = RequestDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError) as caught:
            decoder.receive(message)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert caught.value.code == TOO_LARGE


def chunks(*sizes: int) -> bytes:
    return b"".join(encode_varint(size) + bytes(size) for size in sizes) + b"\0"


@pytest.mark.parametrize(
    ("limits", "fits", "over"),
    [
        (
            Limits(body_bytes=10),
            b"\0" + CONTROL + b"\0\x0a" + bytes(10),
            b"\0" + CONTROL + b"\0\x0b",
        ),
        (
            Limits(body_bytes=10),
            b"\2" + CONTROL + b"\0" + chunks(4, 6),
            b"\2" + CONTROL + b"\0" + chunks(4, 7),
        ),
        (
            Limits(header_count=2),
            request_with(lines((b"a", b"")), trailers=lines((b"a", b""))),
            request_with(lines((b"a", b""), (b"b", b"")), trailers=lines((b"a", b""))),
        ),
        (
            Limits(header_count=2),
            known_with(lines((b"a", b"")), trailers=lines((b"a", b""))),
            known_with(lines((b"a", b""), (b"b", b"")), trailers=lines((b"a", b""))),
        ),
        (
            Limits(header_bytes=15),
            request_with(lines((b"a", b"b"))),
            request_with(lines((b"a", b"bc"))),
        ),
        (Limits(header_bytes=13), request_with(), request_with(trailers=lines((b"a", b"")))),
        (Limits(padding_bytes=9), request_with() + bytes(9), request_with() + bytes(10)),
    ],
)
def test_limits_hold_to_the_byte(limits: Limits, fits: bytes, over: bytes) -> None:
    decode_request(fits, limits)
    decode_request(over + bytes(11))  # well formed, under the usual limits
    for sizes in (1, 10**6):
        decoder = RequestDecoder(limits)
        with pytest.raises(MalformedError) as caught:
            for piece in cut(over, sizes):
                decoder.receive(piece)
        assert caught.value.code == TOO_LARGE


def test_informational_responses_are_counted() -> None:
    one = encode_varint(103) + b"\0"
    end = encode_varint(200)
    assert len(decode_response(b"\3" + 3 * one + end, Limits(header_count=3))) == 5
    with pytest.raises(MalformedError) as caught:
        decode_response(b"\3" + 4 * one + end, Limits(header_count=3))
    assert caught.value.code == TOO_LARGE


def test_nothing_follows_an_error() -> None:
    decoder = RequestDecoder()
    for _ in range(2):
        with pytest.raises(MalformedError, match="not a Binary HTTP request"):
            decoder.receive(b"\x01")
    with pytest.raises(MalformedError, match="not a Binary HTTP request"):
        decoder.finish()


def test_nothing_follows_the_end() -> None:
    decoder = RequestDecoder()
    decoder.receive(request_with())
    decoder.finish()
    for call in (decoder.finish, lambda: decoder.receive(b"\0")):
        with pytest.raises(RuntimeError, match="already ended"):
            call()


def test_encoders_keep_the_order() -> None:
    encoder = ResponseEncoder()
    for early in (encoder.end, encoder.end_content, lambda: encoder.data(b"x")):
        with pytest.raises(RuntimeError, match="out of order"):
            early()
    encoder.head(ResponseHead(status=200))
    encoder.end()
    for late in (encoder.end, encoder.end_content, lambda: encoder.data(b"x")):
        with pytest.raises(RuntimeError, match="out of order"):
            late()
    with pytest.raises(RuntimeError, match="out of order"):
        encoder.head(ResponseHead(status=200))
    with pytest.raises(RuntimeError, match="out of order"):
        encoder.informational(InformationalResponse(status=103))


def test_no_content_is_not_the_end_of_content() -> None:
    encoder = ResponseEncoder()
    encoder.head(ResponseHead(status=200))
    assert encoder.data(b"") == b""


def replaced(**changes: Any) -> RequestHead:
    names = ("method", "scheme", "authority", "path", "headers")
    return RequestHead(**{name: getattr(HEAD, name) for name in names} | changes)


def runs_after_a_head(limits: Limits | None = None) -> tuple[ResponseEncoder, ResponseDecoder]:
    """An encoder and a decoder that have both passed a head and a first run."""
    encoder, decoder = ResponseEncoder(), ResponseDecoder(limits or Limits())
    head = ResponseHead(status=200, headers=())
    assert decoder.receive(encoder.head(head)) == [head]
    assert decoder.receive(encoder.data(b"first")) == [Data(data=b"first")]
    return encoder, decoder


@pytest.mark.parametrize("size", [1, 63, 64, 254, 16_383, 16_384, 32_762])
@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_one_run_per_read_is_taken_whole_however_its_length_is_written(
    size: int, width: int
) -> None:
    if size >= 1 << (8 * width - 2):
        return
    encoder, decoder = runs_after_a_head()
    for text in (b"a" * size, b"b" * size):
        length = (size | {1: 0, 2: 1, 4: 2, 8: 3}[width] << (8 * width - 2)).to_bytes(width, "big")
        assert joined(decoder.receive(length + text)) == [Data(data=text)]
    assert decoder.content_end is None
    assert decoder.receive(b"\x00") == []
    assert decoder.content_end == encoder.size + 2 * (size + width) + 1


def test_what_is_left_of_the_limit_is_counted_over_all_runs() -> None:
    encoder, decoder = runs_after_a_head(Limits(body_bytes=5 + 100 + 100))
    for _ in range(2):
        assert len(decoder.receive(encoder.data(b"x" * 100))) == 1
    with pytest.raises(MalformedError) as caught:
        decoder.receive(encoder.data(b"x"))
    assert caught.value.code == TOO_LARGE
    with pytest.raises(MalformedError):
        decoder.receive(encoder.data(b"x" * 100))


def test_runs_taken_whole_and_in_parts_follow_each_other() -> None:
    encoder, decoder = runs_after_a_head()
    message = b"".join(encoder.data(bytes([65 + index]) * 200) for index in range(4))
    pieces = [message[:202], message[202:300], message[300:606], message[606:]]
    content = b"".join(
        event.data
        for piece in pieces
        for event in decoder.receive(piece)
        if isinstance(event, Data)
    )
    assert content == b"A" * 200 + b"B" * 200 + b"C" * 200 + b"D" * 200
    assert decoder.receive(encoder.end(TRAILERS)) == [EndOfContent(trailers=TRAILERS)]
    with pytest.raises(MalformedError):
        decoder.receive(encoder_run(100))


def encoder_run(size: int) -> bytes:
    """A run of content on its own."""
    return encode_varint(size) + b"x" * size


def test_no_run_is_taken_after_the_end_of_the_message() -> None:
    _, decoder = runs_after_a_head()
    with pytest.raises(MalformedError):
        decoder.finish()
    with pytest.raises(MalformedError):
        decoder.receive(encoder_run(100))


def test_what_people_say_is_hidden_from_repr() -> None:
    secret = b"secret-marker"
    head = RequestHead(
        method=b"POST", scheme=b"https", authority=b"a", path=b"/p", headers=((b"a", secret),)
    )
    assert "/p" in repr(head)
    assert "secret-marker" not in repr([head, Data(data=secret)])
