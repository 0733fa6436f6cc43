"""A broker is lost and comes back by its owners' shares; fewer shares, or altered ones, do not."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.broker.backup import SealedShare, _info, hand_over, make_backup, recover
from cloister.broker.database import Database
from cloister.broker.owner_keys import SUITE, Owner, OwnerKey
from cloister.broker.root_keys.places import open_root_key
from cloister.broker.store import Store
from cloister.channel.hpke import setup_sender
from cloister.channel.key_release import BrokerIdentity
from cloister.channel.resource_uri import ResourceUri
from cloister.cli.main import main
from cloister.errors import CloisterError, MalformedError
from cloister.strictjson import JsonObject, canonical

MASTER = bytes(range(32))
IDENTITY_KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
IDENTITY = BrokerIdentity(IDENTITY_KEY.public_key().public_bytes_raw())
STORE = "0" * 32
OWNERS = [OwnerKey.generate(name) for name in ("Ada", "Bert", "Cleo")]
MACHINE = OwnerKey.generate("new machine")


def shares(threshold: int = 2, **changed: object) -> list[SealedShare]:
    given: dict[str, object] = {
        "store_id": STORE,
        "identity_key": IDENTITY_KEY,
        "owners": [key.owner for key in OWNERS],
        "threshold": threshold,
        "now": 1,
        **changed,
    }
    return [
        SealedShare.parse(share.encode())
        for share in make_backup(MASTER, **given)  # type: ignore[arg-type]  # named above
    ]


def handed(made: list[SealedShare], *numbers: int) -> list[SealedShare]:
    return [hand_over(made[number], OWNERS[number], MACHINE.owner) for number in numbers]


def joined(found: list[SealedShare], key: OwnerKey = MACHINE) -> bytes:
    return recover(found, key, identity=IDENTITY, store_id=STORE)


def refused(act: Callable[[], object], code: str) -> str:
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code
    return str(caught.value)


def test_any_two_of_three_owners_recover() -> None:
    made = shares()
    for numbers in ((0, 1), (0, 2), (1, 2), (2, 1, 0)):
        assert joined(handed(made, *numbers)) == MASTER


def test_one_owner_alone_does_not() -> None:
    made = shares()
    (one,) = handed(made, 1)
    for found in ([one], [one, one], handed(made, 1, 1)):
        assert "2 owners" in refused(lambda found=found: joined(found), "backup.shares")  # type: ignore[misc]  # bound now


def test_shares_say_nothing_of_what_they_share() -> None:
    made = shares()
    for share in made:
        encoded = share.encode()
        assert MASTER not in encoded
        assert MASTER.hex().encode() not in encoded
        assert repr(share.ciphertext) not in repr(share)
    assert OWNERS[0].seed.hex() not in repr(OWNERS[0])


def test_an_owner_opens_their_own_share_only() -> None:
    made = shares()
    refused(lambda: hand_over(made[0], OWNERS[1], MACHINE.owner), "backup.owner")
    (one,) = handed(made, 0)
    refused(lambda: hand_over(one, OWNERS[0], MACHINE.owner), "backup.owner")


def test_an_altered_share_is_named() -> None:
    made = shares()
    good = handed(made, 0, 1, 2)
    assert joined(good) == MASTER
    flipped = good[1].ciphertext[:-1] + bytes([good[1].ciphertext[-1] ^ 1])
    swapped = dataclasses.replace(good[1], enc=good[2].enc, ciphertext=good[2].ciphertext)
    for altered in (dataclasses.replace(good[1], ciphertext=flipped), swapped):
        message = refused(
            lambda altered=altered: joined([good[0], altered, good[2]]),  # type: ignore[misc]  # bound now
            "backup.share",
        )
        assert "Bert" in message
        assert "Ada" not in message


def test_a_share_that_somebody_made_up_is_named() -> None:
    """Anybody can seal anything to the machine's key; the signed commitments tell."""
    good, forger = handed(shares(), 0, 1), shares()
    bogus = hand_over(forger[1], OWNERS[1], MACHINE.owner)
    forged = dataclasses.replace(good[1], enc=bogus.enc, ciphertext=bogus.ciphertext)
    assert "Bert" in refused(lambda: joined([good[0], forged]), "backup.share")


def test_a_share_made_up_for_this_very_backup_is_named() -> None:
    """Sealed to the machine as its owner would; only the commitment tells."""
    good = handed(shares(), 0, 1)
    enc, context = setup_sender(
        SUITE, MACHINE.owner.public_key, _info(good[1].statement, handed_over=True)
    )
    forged = dataclasses.replace(
        good[1], enc=enc, ciphertext=context.seal(bytes([2]), os.urandom(16 + 32))
    )
    assert "Bert" in refused(lambda: joined([good[0], forged]), "backup.share")


def test_every_part_of_the_statement_is_signed() -> None:
    document = json.loads(shares()[0].encode())
    SealedShare.parse(json.dumps(document).encode())
    changes: list[dict[str, object]] = [
        {"threshold": 3},
        {"store": "1" * 32},
        {"made_at": 2},
        {"backup": "0" * 32},
        {"identity": str(BrokerIdentity(bytes(31) + b"\x01"))},
        {"commitments": ["0" * 64, *document["statement"]["commitments"][1:]]},
        {"owners": document["statement"]["owners"][::-1]},
    ]
    for change in changes:
        altered = {**document, "statement": {**document["statement"], **change}}
        refused(
            lambda altered=altered: SealedShare.parse(json.dumps(altered).encode()),  # type: ignore[misc]  # bound now
            "backup.signature",
        )


@pytest.mark.parametrize(
    "change", [{"number": 0}, {"number": 4}, {"handed_over": 1}, {"enc": "%"}, {"more": 1}]
)
def test_other_documents_are_malformed(change: dict[str, object]) -> None:
    document = json.loads(shares()[0].encode())
    with pytest.raises(MalformedError):
        SealedShare.parse(json.dumps({**document, **change}).encode())


@pytest.mark.parametrize(
    "change",
    [{"format": "another"}, {"threshold": 1}, {"threshold": 4}, {"commitments": ["0" * 64] * 2}],
    ids=["format", "one is enough", "more than there are", "a share without a commitment"],
)
def test_a_signature_alone_makes_no_statement(change: dict[str, object]) -> None:
    """Anybody can sign as some broker, and give the share to an owner."""
    document = json.loads(shares()[0].encode())

    def signed(statement: dict[str, object]) -> bytes:
        text = b"cloister.broker.backup.v1\0" + canonical(cast("JsonObject", statement))
        signature = base64.b64encode(IDENTITY_KEY.sign(text)).decode()
        return json.dumps({**document, "statement": statement, "signature": signature}).encode()

    SealedShare.parse(signed(document["statement"]))
    with pytest.raises(MalformedError):
        SealedShare.parse(signed({**document["statement"], **change}))


def test_shares_of_several_backups_or_stores_do_not_mix() -> None:
    first, second = handed(shares(), 0, 1), handed(shares(), 0, 1)
    refused(lambda: joined([first[0], second[1]]), "backup.shares")
    for other in (
        shares(store_id="1" * 32),
        shares(identity_key=Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")),
    ):
        refused(lambda other=other: joined(handed(other, 0, 1)), "backup.shares")  # type: ignore[misc]  # bound now


def test_a_share_for_its_owner_is_not_taken_for_one_handed_over() -> None:
    made = shares(owners=[MACHINE.owner, OWNERS[1].owner])
    good = hand_over(made[1], OWNERS[1], MACHINE.owner)
    refused(lambda: joined([made[0], good]), "backup.shares")
    claimed = dataclasses.replace(made[0], handed_over=True)
    refused(lambda: joined([claimed, good]), "backup.share")


def test_another_machine_opens_nothing() -> None:
    found = handed(shares(), 0, 1)
    refused(lambda: joined(found, OWNERS[2]), "backup.share")


@pytest.mark.parametrize("threshold", [0, 1, 4])
def test_one_owner_is_never_enough(threshold: int) -> None:
    refused(lambda: shares(threshold), "backup.owners")


def test_owners_are_told_apart() -> None:
    ada = OWNERS[0].owner
    twin = Owner(name="Twin", public_key=ada.public_key)
    namesake = Owner(name="Ada", public_key=OWNERS[1].owner.public_key)
    for owners in ([ada, ada], [ada, twin], [ada, namesake]):
        refused(lambda owners=owners: shares(owners=owners), "backup.owners")  # type: ignore[misc]  # bound now


def test_keys_read_back() -> None:
    assert OwnerKey.parse(OWNERS[0].encode()) == OWNERS[0]
    assert Owner.parse(OWNERS[0].owner.encode()) == OWNERS[0].owner
    with pytest.raises(MalformedError):
        Owner.parse(OWNERS[0].encode())
    with pytest.raises(MalformedError):
        OwnerKey.generate("line\nfeed")


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as left:
        main(["broker", *map(str, words)])
    code = left.value.code
    assert isinstance(code, int)
    return code


def test_a_lost_broker_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal, by the commands that owners type, on files alone."""
    monkeypatch.chdir(tmp_path)
    old = ("--store", "sqlite:///old.db", "--root-key", "development-file:old.key")
    secret = os.urandom(32)
    Path("secret").write_bytes(secret)
    name = "kbs:///acme/weights/llama"
    assert run("init", *old) == 0
    assert run("secret", "put", name, "--file", "secret", *old) == 0
    for owner in ("ada", "bert", "cleo"):
        assert run("owner-key", owner, "--name", owner) == 0
    owners = [word for owner in ("ada", "bert", "cleo") for word in ("--owner", f"{owner}.pub")]
    assert run("backup", *owners, "--threshold", 2, "--out", "shares", *old) == 0
    shutil.copy("old.db", "copy.db")
    Path("old.db").unlink()
    Path("old.key").unlink()  # the machine is gone, and its root key with it

    assert run("owner-key", "machine", "--name", "new machine") == 0
    for number, owner in ((1, "ada"), (3, "cleo")):
        handed_over = ("--key", owner, "--to", "machine.pub", "--out", f"{owner}.share")
        assert run("share", f"shares/share-{number}.json", *handed_over) == 0
    opener = tmp_path / "opener"
    opener.write_bytes(os.urandom(32))
    opener.chmod(0o600)
    new = f"sealed-file:new.key?key-file={opener}"
    assert run("root-key", "make", new) == 0
    here = ("--key", "machine", "--root-key", new, "--store", "sqlite:///copy.db")
    before = Path("copy.db").read_bytes()
    assert run("recover", "ada.share", *here) == 2  # one is not enough
    assert run("recover", "shares/share-1.json", "cleo.share", *here) == 2
    assert Path("copy.db").read_bytes() == before
    assert run("recover", "ada.share", "cleo.share", *here) == 0

    database = Database.open("sqlite:///copy.db")
    try:
        store = Store.open(database, open_root_key(new), now=lambda: 4_000_000_000.0)
        uri = ResourceUri.parse(name)
        with database.reading() as connection:
            version = store.version(uri, 1, connection)
        assert version is not None
        assert store.open_version(uri, version) == secret
        events = [json.loads(entry)["event"] for entry in store.last_entries(10)]
        assert "backup.made" in events
        assert "root_key.replaced" in events
    finally:
        database.close()


def test_a_root_key_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ("--store", "sqlite:///broker.db")
    old, new = "development-file:old.key", "development-file:new.key"
    assert run("init", *store, "--root-key", old) == 0
    assert run("root-key", "make", new) == 0
    assert run("root-key", "replace", new, *store, "--root-key", old) == 0
    assert run("secret", "list", *store, "--root-key", new) == 0
    assert run("secret", "list", *store, "--root-key", old) == 2


def test_a_database_of_another_store_does_not_open(tmp_path: Path) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/one.db")
    try:
        root = open_root_key(f"development-file:{tmp_path}/root")
        Store.create(database, root, now=lambda: 1.0)
        master, _ = Store.unwrap_master(database, root)
        recovered = Store.recovered(database, master, now=lambda: 2.0)
        assert recovered.identity == Store.open(database, root, now=lambda: 2.0).identity
        refused(lambda: Store.recovered(database, MASTER, now=lambda: 2.0), "broker.store")
    finally:
        database.close()
