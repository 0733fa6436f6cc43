"""Request keys live in memory, for an hour of steady time, and never show."""

from __future__ import annotations

import gc
import os
import weakref

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cloister.channel.hpke import Kem
from cloister.channel.keyset import parse_keyset
from cloister.channel.ohttp import KeyConfig, parse_key_configs
from cloister.worker.keys import KeyRing
from cloister.worker.replay import Admission
from cloister.worker.settings import Clocks, KeySettings


class Turned:
    def __init__(self) -> None:
        self.wall = 1_000_000.0
        self.steady = 50.0

    def clocks(self) -> Clocks:
        return Clocks(wall=lambda: self.wall, steady=lambda: self.steady)


def ring(turned: Turned, **settings: float) -> KeyRing:
    return KeyRing(
        subject="cloister:sha256:" + "0" * 64,
        settings=KeySettings(**settings),  # type: ignore[arg-type]  # ints where ints are due
        clocks=turned.clocks(),
        random=os.urandom,
    )


def test_the_keyset_lists_both_kems_and_the_receipt_key() -> None:
    turned = Turned()
    keys = ring(turned)
    generation = keys.current
    keyset = generation.keyset
    assert parse_keyset(keyset.to_json()) == keyset
    configs = [KeyConfig.parse(data) for data in keyset.ohttp_key_configs()]
    assert [config.kem for config in configs] == [Kem.MLKEM768_X25519, Kem.X25519]
    assert parse_key_configs(generation.key_configs) == tuple(configs)
    assert keyset.not_after == 1_000_000 + 4200
    receipt = keys.receipt_key
    assert keyset.receipt_key(receipt.key_id) == receipt.public_bytes


def test_keys_rotate_hourly_and_overlap() -> None:
    turned = Turned()
    keys = ring(turned)
    first = keys.current
    turned.steady += 3599
    assert not keys.refresh()
    turned.steady += 1
    second = keys.current
    assert second.digest != first.digest
    assert second.keyset.receipt_signing_keys == first.keyset.receipt_signing_keys
    assert set(keys.opening_keys()) == {*first.key_ids, *second.key_ids}
    turned.steady += 599
    assert set(first.key_ids) <= set(keys.opening_keys())
    turned.steady += 1
    assert set(keys.opening_keys()) == set(second.key_ids)
    assert all(keys.request_key(one) is None for one in first.key_ids)


def test_age_is_measured_on_the_steady_clock() -> None:
    turned = Turned()
    keys = ring(turned)
    first = keys.current
    turned.wall -= 100_000
    turned.steady += 4200
    assert not set(first.key_ids) & set(keys.opening_keys())


def test_a_clock_that_jumps_over_many_hours_leaves_fresh_keys() -> None:
    turned = Turned()
    keys = ring(turned)
    turned.steady += 100_000
    assert set(keys.opening_keys()) == set(keys.current.key_ids)


def test_key_ids_of_live_keys_never_collide() -> None:
    turned = Turned()
    keys = ring(turned)
    for _ in range(300):
        turned.steady += 3600
        ids = keys.current.key_ids
        assert len({*ids}) == 2
        assert all(keys.opening_keys()[one].config.key_id == one for one in ids)


def test_a_full_key_is_dropped_and_replaced() -> None:
    turned = Turned()
    keys = ring(turned, replay_capacity=2, min_rotation_s=60)
    turned.steady += 60
    first = keys.current
    key = keys.request_key(first.key_ids[0])
    assert key is not None
    assert keys.admit(key, b"1") is Admission.NEW
    assert keys.admit(key, b"1") is Admission.SEEN
    assert keys.current is first
    assert keys.admit(key, b"2") is Admission.NEW
    assert keys.current is not first
    assert first.key_ids[0] not in keys.opening_keys()
    assert first.key_ids[1] in keys.opening_keys()
    assert keys.seconds_to_rotation() == 0


def test_replacing_full_keys_has_a_pace() -> None:
    turned = Turned()
    keys = ring(turned, replay_capacity=1, min_rotation_s=60)
    first = keys.current
    key = keys.request_key(first.key_ids[0])
    assert key is not None
    assert keys.seconds_to_rotation() == 0
    keys.admit(key, b"1")
    assert keys.current is first
    assert keys.seconds_to_rotation() == 60
    turned.steady += 60
    assert keys.seconds_to_rotation() == 0
    assert keys.current is not first


def test_private_keys_do_not_show() -> None:
    keys = ring(Turned())
    key = keys.request_key(keys.current.key_ids[0])
    seed = keys.receipt_key.private.private_bytes(
        Encoding.Raw, PrivateFormat.Raw, NoEncryption()
    ).hex()
    shown = repr(keys) + repr(keys.receipt_key) + repr(key) + repr(keys.current)
    assert seed not in shown
    assert "PrivateKey" not in shown


def test_a_dead_key_is_let_go() -> None:
    turned = Turned()
    keys = ring(turned)
    key = keys.request_key(keys.current.key_ids[0])
    assert key is not None
    gone = weakref.ref(key.server_key.private_key) if _weak(key.server_key.private_key) else None
    del key
    turned.steady += 4200
    keys.refresh()
    gc.collect()
    assert gone is None or gone() is None


def _weak(value: object) -> bool:
    try:
        weakref.ref(value)
    except TypeError:
        return False
    return True
