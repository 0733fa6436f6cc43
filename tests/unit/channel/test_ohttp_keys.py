"""Key configurations: what RFC 9458 section 3 says, and the order of preference."""

from __future__ import annotations

import pytest

from cloister.channel.hpke import Aead, Kdf, Kem, PrivateKey, Suite
from cloister.channel.ohttp import (
    SUITES_BY_PREFERENCE,
    KeyConfig,
    ServerKey,
    encode_key_configs,
    parse_key_configs,
    preferred_config,
    preferred_suite,
)
from cloister.channel.ohttp_keys import MAX_KEY_CONFIGS
from cloister.errors import ChannelError, MalformedError, UnsupportedError

# RFC 9458 appendix A.
EXAMPLE = bytes.fromhex(
    "01002031e1f05a740102115220e9af918f738674aec95f54db6e04eb705aae8e79815500080001000100010003"
)
AES_128 = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.AES_128_GCM)
CHACHA = Suite(Kem.X25519, Kdf.HKDF_SHA256, Aead.CHACHA20_POLY1305)
HYBRID = Suite(Kem.MLKEM768_X25519, Kdf.HKDF_SHA256, Aead.AES_256_GCM)


def config(*suites: Suite, key_id: int = 1) -> KeyConfig:
    kem = suites[0].kem
    return ServerKey.generate(key_id, kem, suites).config


def test_the_published_configuration() -> None:
    parsed = KeyConfig.parse(EXAMPLE)
    assert (parsed.key_id, parsed.kem, parsed.suites) == (1, Kem.X25519, (AES_128, CHACHA))
    assert parsed.public_key == EXAMPLE[3:35]
    assert parsed.encode() == EXAMPLE


@pytest.mark.parametrize("kem", list(Kem))
def test_configurations_come_back_as_they_were(kem: Kem) -> None:
    key = ServerKey.generate(255, kem)
    assert key.config.public_key == key.private_key.public_bytes
    assert KeyConfig.parse(key.config.encode()) == key.config
    configs = (key.config, config(HYBRID))
    assert parse_key_configs(encode_key_configs(configs)) == configs


@pytest.mark.parametrize(
    "data",
    [
        b"",
        EXAMPLE[:2],
        EXAMPLE[:34],
        EXAMPLE[:36],
        EXAMPLE[:-1],
        EXAMPLE + b"\0",
        EXAMPLE[:35] + b"\0\0",
        EXAMPLE[:35] + b"\0\3" + EXAMPLE[37:40],
        EXAMPLE[:35] + b"\0\4" + EXAMPLE[37:],
    ],
)
def test_configurations_of_a_wrong_shape(data: bytes) -> None:
    with pytest.raises(MalformedError):
        KeyConfig.parse(data)


def test_unknown_algorithms_are_unsupported_and_never_guessed() -> None:
    with pytest.raises(UnsupportedError, match="KEM"):
        KeyConfig.parse(b"\x01\x00\x10" + EXAMPLE[3:])
    with pytest.raises(UnsupportedError, match="KDF and AEAD"):
        KeyConfig.parse(EXAMPLE[:35] + b"\0\4" + bytes.fromhex("00020001"))
    some = KeyConfig.parse(EXAMPLE[:35] + b"\0\x0c" + bytes.fromhex("0002000100010003ffffffff"))
    assert some.suites == (CHACHA,)


def test_a_list_leaves_out_what_is_unknown() -> None:
    unknown = b"\x05\x00\x10" + bytes(65) + b"\0\4\0\1\0\1"
    listed = b"".join(len(one).to_bytes(2, "big") + one for one in (unknown, EXAMPLE))
    assert parse_key_configs(listed) == (KeyConfig.parse(EXAMPLE),)
    assert parse_key_configs(b"") == ()


@pytest.mark.parametrize("cut", [1, 2, 3, len(EXAMPLE) + 1])
def test_a_list_cut_short(cut: int) -> None:
    listed = encode_key_configs((KeyConfig.parse(EXAMPLE),))
    assert len(parse_key_configs(listed)) == 1
    with pytest.raises(MalformedError):
        parse_key_configs(listed[:-cut])
    with pytest.raises(MalformedError):
        parse_key_configs(listed + listed[:cut])


def test_a_list_cut_short_in_what_is_unknown() -> None:
    unknown = b"\x05\x00\x10" + bytes(65) + b"\0\4\0\1\0\1"
    assert parse_key_configs(len(unknown).to_bytes(2, "big") + unknown) == ()
    with pytest.raises(MalformedError):
        parse_key_configs(len(unknown).to_bytes(2, "big") + unknown[:-1])


def test_a_list_is_bounded() -> None:
    one = encode_key_configs((KeyConfig.parse(EXAMPLE),))
    assert len(parse_key_configs(one * MAX_KEY_CONFIGS)) == MAX_KEY_CONFIGS
    with pytest.raises(MalformedError, match="too long"):
        parse_key_configs(one * (MAX_KEY_CONFIGS + 1))


def test_the_order_of_preference() -> None:
    assert SUITES_BY_PREFERENCE[0] == HYBRID
    kems = [suite.kem for suite in SUITES_BY_PREFERENCE]
    assert kems.index(Kem.X25519) == kems.count(Kem.MLKEM768_X25519)  # every hybrid comes first
    assert preferred_suite(config(CHACHA, AES_128)) == AES_128
    assert preferred_suite(config(CHACHA)) == CHACHA
    classic, hybrid = config(AES_128), config(HYBRID, key_id=2)
    assert preferred_config((classic, hybrid)) is hybrid
    assert preferred_config((classic,)) is classic


def test_no_usable_suite() -> None:
    public = PrivateKey.generate(Kem.X25519).public_bytes
    empty = KeyConfig(key_id=1, kem=Kem.X25519, public_key=public, suites=())
    assert preferred_suite(config(AES_128)) == AES_128
    for call in (lambda: preferred_suite(empty), lambda: preferred_config((empty,))):
        with pytest.raises(ChannelError) as caught:
            call()
        assert caught.value.code == "channel.suite"


def test_a_key_does_not_show_itself() -> None:
    key = ServerKey.generate(1, Kem.X25519)
    assert key.private_key.private_bytes().hex() not in repr(key)
    assert repr(key.private_key.private_bytes()) not in repr(key)


def test_the_public_key_is_opened_once_and_changes_nothing_else() -> None:
    one = config(HYBRID)
    other = KeyConfig.parse(one.encode())
    assert one.opened_public_key() is one.opened_public_key()
    assert one == other and hash(one) == hash(other) and repr(one) == repr(other)
    assert one.encode() == other.encode()
    broken = KeyConfig(key_id=1, kem=one.kem, public_key=one.public_key[:-1], suites=one.suites)
    with pytest.raises(MalformedError):
        broken.opened_public_key()
