"""Every kind of root key: what it wraps opens again, there, and for the same context only."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.attester import tpm_sealing
from cloister.attester.tpm import Command, Tpm, _passwords
from cloister.attester.tpm_errors import TpmError
from cloister.attester.tpm_sealing import unseal
from cloister.aws.key_policy import Use
from cloister.aws.messages import CallersKms
from cloister.broker.root_keys import aws_kms, pkcs11, sealed_file, tpm_sealed, vault
from cloister.broker.root_keys.aws_kms import KmsRootKey
from cloister.broker.root_keys.places import MAKERS, OPENERS, make_root_key, open_root_key
from cloister.broker.root_keys.protocol import RootKey
from cloister.broker.root_keys.sealed_file import KeyFile, Passphrase, seal_key, unseal_key
from cloister.errors import CloisterError, ConfigurationError, FetchError, MalformedError
from cloister.evidence.tpm import ObjectAttribute
from support.kms import RSA_KEY, Cloud
from support.software_hsm import Hsm, module_path, software_hsm
from support.software_tpm import HAVE_SWTPM, software_tpm
from support.transit import TOKEN, Transit

MASTER = bytes(range(32))
CONTEXT, OTHER = b"store one", b"store two"
PASSPHRASE = "correct horse battery staple"
SECRET = "root_key.secret"
TPM_RC_AUTH_UNAVAILABLE = 0x12F  # TPM 2.0 Part 2 section 6.6
HAVE_HSM = module_path() is not None
needs_hsm = pytest.mark.skipif(not HAVE_HSM, reason="needs SoftHSM (scripts/setup tests)")
needs_swtpm = pytest.mark.skipif(not HAVE_SWTPM, reason="needs swtpm")


@pytest.fixture(autouse=True)
def _cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Passphrase, "__init__", _cheap_init(Passphrase.__init__))


def _cheap_init(init: Any) -> Any:
    @functools.wraps(init)
    def cheap(self: Any, *, text: str, log2_n: int = 4) -> None:
        init(self, text=text, log2_n=log2_n)

    return cheap


def private(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def refused(act: Callable[[], object], code: str) -> str:
    with pytest.raises(CloisterError) as caught:
        act()
    assert caught.value.code == code
    assert isinstance(caught.value, ConfigurationError | FetchError)
    return str(caught.value)


@pytest.fixture(scope="module")
def hsm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hsm | None]:
    if not HAVE_HSM:
        yield None
        return
    with software_hsm(tmp_path_factory.mktemp("hsm")) as made:
        pkcs11.make(made.name())
        yield made


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return Cloud()


def kms_key(cloud: Cloud) -> KmsRootKey:
    return KmsRootKey(cloud.attested(cloud.secret, key=RSA_KEY), arn=cloud.secret)


def transit_name(folder: Path) -> str:
    token = private(folder / "token", TOKEN.encode() + b"\n")
    return f"https://vault.test:8200/transit/root?token-file={token}"


@contextlib.contextmanager
def opened(kind: str, tmp_path: Path, hsm: Hsm | None, cloud: Cloud) -> Iterator[RootKey]:
    match kind:
        case "sealed-file":
            key_file = private(tmp_path / "opener", os.urandom(32))
            yield sealed_file.make(f"{tmp_path}/root?key-file={key_file}", ask=never)
        case "pkcs11":
            assert hsm is not None
            yield pkcs11.open_key(hsm.name())
        case "vault":
            yield vault.open_key(transit_name(tmp_path), transport=Transit().transport)
        case "aws-kms":
            yield kms_key(cloud)
        case "tpm":
            with software_tpm() as (running, _):
                yield tpm_sealed.make(
                    f"{tmp_path}/root?pcrs=7+14", open_device=lambda _: kept(running.tpm)
                )


def kept(tpm: Tpm) -> Tpm:
    """The same connection, which its user may close."""
    copy = Tpm(tpm.transport)
    copy.close = lambda: None  # type: ignore[method-assign]  # the test ends it
    return copy


def never(prompt: str) -> str:
    raise AssertionError(f"nobody should be asked: {prompt}")


KINDS = [
    "sealed-file",
    pytest.param("pkcs11", marks=needs_hsm),
    "vault",
    "aws-kms",
    pytest.param("tpm", marks=[needs_swtpm, pytest.mark.tpm]),
]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrapped_opens_for_its_context_only(
    kind: str, tmp_path: Path, hsm: Hsm | None, cloud: Cloud
) -> None:
    with opened(kind, tmp_path, hsm, cloud) as root:
        assert root.name.startswith(kind)
        wrapped = root.wrap(MASTER, CONTEXT)
        assert root.unwrap(wrapped, CONTEXT) == MASTER
        assert root.wrap(MASTER, CONTEXT) != wrapped
        assert MASTER not in wrapped
        assert MASTER.hex() not in repr(root)
        refused(lambda: root.unwrap(wrapped, OTHER), "root_key.refused")
        for altered in (b"", wrapped[:10], wrapped[:-1], bytes(len(wrapped)), flipped(wrapped)):
            refused(functools.partial(root.unwrap, altered, CONTEXT), "root_key.refused")


def flipped(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


# A sealed file.


def test_a_passphrase_opens_a_sealed_file(tmp_path: Path) -> None:
    path = tmp_path / "root"
    made = sealed_file.make(str(path), ask=lambda _: PASSPHRASE)
    wrapped = made.wrap(MASTER, CONTEXT)
    assert path.stat().st_mode & 0o777 == 0o600
    again = sealed_file.open_key(str(path), ask=lambda _: PASSPHRASE)
    assert again.unwrap(wrapped, CONTEXT) == MASTER
    refused(lambda: sealed_file.open_key(str(path), ask=lambda _: "another one"), "root_key.secret")
    in_file = private(tmp_path / "words", PASSPHRASE.encode() + b"\n")
    by_file = f"{path}?passphrase-file={in_file}"
    assert sealed_file.open_key(by_file, ask=never).unwrap(wrapped, CONTEXT) == MASTER


def test_nothing_is_overwritten_and_nothing_weak_is_made(tmp_path: Path) -> None:
    path = str(tmp_path / "root")
    refused(lambda: sealed_file.make(path, ask=lambda _: "short"), "root_key.secret")
    words = iter([PASSPHRASE, PASSPHRASE + "!"])
    refused(lambda: sealed_file.make(path, ask=lambda _: next(words)), "root_key.secret")
    assert not Path(path).exists()
    sealed_file.make(path, ask=lambda _: PASSPHRASE)
    before = Path(path).read_bytes()
    refused(lambda: sealed_file.make(path, ask=lambda _: PASSPHRASE), "root_key.file")
    assert Path(path).read_bytes() == before
    short = private(tmp_path / "short", bytes(31))
    refused(lambda: sealed_file.make(f"{path}2?key-file={short}", ask=never), "root_key.secret")


@pytest.mark.parametrize(
    "opener", [Passphrase(text=PASSPHRASE, log2_n=4), KeyFile(content=bytes(32))]
)
def test_every_member_of_the_file_counts(opener: Passphrase | KeyFile) -> None:
    content = seal_key(MASTER, opener, random=os.urandom)
    assert unseal_key(content, opener) == MASTER
    members = json.loads(content)
    others = json.loads(seal_key(MASTER, opener, random=os.urandom))
    for name in ("salt", "nonce", "sealed"):
        altered = json.dumps({**members, name: others[name]}).encode()
        with pytest.raises(ConfigurationError):
            unseal_key(altered, opener)
    other = KeyFile(content=bytes(33)) if isinstance(opener, Passphrase) else Passphrase(text="x")
    with pytest.raises(ConfigurationError):
        unseal_key(content, other)


@pytest.mark.parametrize(
    "change", [{"log2_n": 21}, {"log2_n": 0}, {"format": "x"}, {"kdf": "none"}, {"more": 1}]
)
def test_a_file_that_asks_for_something_else_is_refused(change: dict[str, Any]) -> None:
    """Among it one that asks for two gigabytes of memory."""
    opener = Passphrase(text=PASSPHRASE, log2_n=4)
    content = seal_key(MASTER, opener, random=os.urandom)
    with pytest.raises((MalformedError, ConfigurationError)):
        unseal_key(json.dumps({**json.loads(content), **change}).encode(), opener)


def test_files_that_others_may_read_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "root"
    sealed_file.make(str(path), ask=lambda _: PASSPHRASE)
    path.chmod(0o640)
    refused(lambda: sealed_file.open_key(str(path), ask=lambda _: PASSPHRASE), "root_key.file")


# A hardware security module.


@needs_hsm
def test_a_module_refuses_what_it_does_not_have(hsm: Hsm, tmp_path: Path) -> None:
    refused(lambda: pkcs11.open_key(hsm.name("absent")), "root_key.missing")
    refused(lambda: pkcs11.open_key(hsm.name(token="absent")), "root_key.missing")
    refused(lambda: pkcs11.make(hsm.name()), "root_key.exists")
    wrong = Hsm(hsm.module, private(tmp_path / "pin", b"999999\n"))
    message = refused(lambda: pkcs11.open_key(wrong.name()), "root_key.secret")
    assert "999999" not in message
    absent = Hsm("/absent.so", hsm.pin_file)
    refused(lambda: pkcs11.open_key(absent.name()), "root_key.unreachable")


@needs_hsm
def test_a_key_that_could_leave_the_module_is_refused(hsm: Hsm) -> None:
    import pkcs11 as library

    token = library.lib(hsm.module).get_token(token_label="broker")
    with token.open(user_pin="123456", rw=True) as session:
        session.generate_key(
            library.KeyType.AES,
            256,
            label="extractable",
            store=True,
            template={library.Attribute.EXTRACTABLE: True, library.Attribute.SENSITIVE: False},
        )
    refused(lambda: pkcs11.open_key(hsm.name("extractable")), "root_key.extractable")


@needs_hsm
def test_the_modules_key_cannot_be_read(hsm: Hsm) -> None:
    import pkcs11 as library

    token = library.lib(hsm.module).get_token(token_label="broker")
    with token.open(user_pin="123456") as session:
        (key,) = session.get_objects({library.Attribute.LABEL: "root"})
        with pytest.raises(library.exceptions.PKCS11Error):
            key[library.Attribute.VALUE]


# A transit engine.


def test_the_engines_answers_are_told_apart(tmp_path: Path) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    wrapped = root.wrap(MASTER, CONTEXT)
    for status, code in (
        (403, "root_key.secret"),
        (404, "root_key.missing"),
        (429, "root_key.unreachable"),
        (503, "root_key.unreachable"),
        (307, "root_key.unreachable"),
    ):
        transit.status = status
        message = refused(lambda: root.wrap(MASTER, CONTEXT), code)
        assert TOKEN not in message
        refused(lambda: root.unwrap(wrapped, CONTEXT), code)


NO_DATA = [b"", b"[]", b"{}", b'{"data": []}', b'{"data": {}}', b'{"data": {}} x']
NO_CIPHERTEXT = [
    *NO_DATA,
    b'{"data": {"ciphertext": 1}}',
    b'{"data": {"ciphertext": "v1:AAAA"}}',
    b'{"data": {"ciphertext": "vault:v1:*"}}',
    b'{"data": {"ciphertext": "vault:v1:AAAA"}, "more": "%s"}' % (b"x" * (1 << 20)),
]
NO_PLAINTEXT = [
    *NO_DATA,
    b'{"data": {"plaintext": 1}}',
    b'{"data": {"plaintext": "*"}}',
    b'{"data": {"plaintext": "AAAA"}, "more": "%s"}' % (b"x" * (1 << 20)),
]


@pytest.mark.parametrize("number", range(len(NO_CIPHERTEXT)))
def test_what_is_no_ciphertext_is_not_kept(tmp_path: Path, number: int) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    transit.content = b'{"data": {"ciphertext": "vault:v1:AAAA"}}'
    assert root.wrap(MASTER, CONTEXT) == b"vault:v1:AAAA"
    transit.content = NO_CIPHERTEXT[number]
    refused(lambda: root.wrap(MASTER, CONTEXT), "root_key.unreachable")


@pytest.mark.parametrize("number", range(len(NO_PLAINTEXT)))
def test_what_is_no_plaintext_is_not_used(tmp_path: Path, number: int) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    wrapped = root.wrap(MASTER, CONTEXT)
    transit.content = b'{"data": {"plaintext": "AAAA"}}'
    assert root.unwrap(wrapped, CONTEXT) == bytes(3)
    transit.content = NO_PLAINTEXT[number]
    refused(lambda: root.unwrap(wrapped, CONTEXT), "root_key.unreachable")


@pytest.mark.parametrize(
    "wrapped", [b"", b"x", b"vault:v1:", b"vault:1:AAAA", b"vault:v1:*\n", b"\xff"]
)
def test_an_engine_is_not_asked_about_what_is_not_its(tmp_path: Path, wrapped: bytes) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    assert root.unwrap(root.wrap(MASTER, CONTEXT), CONTEXT) == MASTER
    asked = len(transit.requests)
    refused(lambda: root.unwrap(wrapped, CONTEXT), "root_key.refused")
    assert len(transit.requests) == asked


def test_an_engine_that_opens_something_else_is_refused(tmp_path: Path) -> None:
    transit = Transit()
    vault.open_key(transit_name(tmp_path), transport=transit.transport)
    transit.plaintext = bytes(32)
    refused(
        lambda: vault.open_key(transit_name(tmp_path), transport=transit.transport),
        "root_key.unreachable",
    )


def test_only_a_refused_ciphertext_is_somebody_elses(tmp_path: Path) -> None:
    """Status 400 to a request to encrypt says that the request is wrong, not the ciphertext."""
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    wrapped = root.wrap(MASTER, CONTEXT)
    transit.status = 400
    refused(lambda: root.unwrap(wrapped, CONTEXT), "root_key.refused")
    refused(lambda: root.wrap(MASTER, CONTEXT), "root_key.unreachable")


@pytest.mark.parametrize(
    "address",
    [
        "https:///transit/root",
        "https://user@vault.test:8200/transit/root",
        "https://vault.test:8200/root",
        "https://vault.test:8200/transit/a%20b",
        "https://vault.test:8200/tran//root",
        "https://vault.test:8200",
        "vault.test/transit/root",
    ],
)
def test_an_address_that_is_none_is_not_asked(tmp_path: Path, address: str) -> None:
    transit = Transit()
    good = transit_name(tmp_path)
    vault.open_key(good, transport=transit.transport)
    asked = len(transit.requests)
    name = f"{address}?{good.partition('?')[2]}"
    refused(lambda: vault.open_key(name, transport=transit.transport), "root_key.kind")
    assert len(transit.requests) == asked


def test_an_engines_compressed_answer_is_not_unpacked(tmp_path: Path) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    assert transit.requests[-1].headers["accept-encoding"] == "identity"
    transit.coding = "identity"
    root.wrap(MASTER, CONTEXT)
    transit.coding = "gzip"  # in name only, since nothing gets as far as that
    message = refused(lambda: root.wrap(MASTER, CONTEXT), "root_key.unreachable")
    assert "none of a transit engine" in message


def test_a_rotated_transit_key_still_opens_what_was_wrapped_before(tmp_path: Path) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    wrapped = root.wrap(MASTER, CONTEXT)
    transit.versions.append(Transit().versions[0])
    assert root.unwrap(wrapped, CONTEXT) == MASTER
    assert root.wrap(MASTER, CONTEXT).startswith(b"vault:v2:")


def test_an_engine_that_ignores_the_context_is_refused(tmp_path: Path) -> None:
    transit = Transit()
    name = transit_name(tmp_path)
    vault.open_key(name, transport=transit.transport)
    transit.heeds_context = False
    refused(lambda: vault.open_key(name, transport=transit.transport), "root_key.context")


def test_the_token_is_read_anew_and_never_sent_in_clear(tmp_path: Path) -> None:
    transit = Transit()
    root = vault.open_key(transit_name(tmp_path), transport=transit.transport)
    (tmp_path / "token").write_text("hvs.another\n")
    refused(lambda: root.wrap(MASTER, CONTEXT), "root_key.secret")
    name = transit_name(tmp_path).replace("https:", "http:")
    refused(lambda: vault.open_key(name, transport=transit.transport), "root_key.kind")


# AWS KMS.


def test_another_enclave_does_not_open_what_this_one_wrapped(cloud: Cloud) -> None:
    wrapped = kms_key(cloud).wrap(MASTER, CONTEXT)
    other = cloud.key(Use.SECRET)
    root = KmsRootKey(cloud.attested(other), arn=other)
    refused(lambda: root.unwrap(wrapped, CONTEXT), "root_key.refused")
    unattested = CallersKms(cloud.client(), key_arn=cloud.secret)
    alone = KmsRootKey(unattested, arn=cloud.secret)
    refused(lambda: alone.unwrap(wrapped, CONTEXT), "root_key.denied")
    refused(lambda: alone.wrap(MASTER, CONTEXT), "root_key.denied")


def test_a_kms_key_is_named_by_its_arn(cloud: Cloud, tmp_path: Path) -> None:
    credentials = private(tmp_path / "credentials", b"{}")
    name = f"{cloud.secret}?credentials-file={credentials}"
    assert aws_kms.open_key(name).name == f"aws-kms {cloud.secret}"
    for wrong in ("alias/x?credentials-file=y", cloud.secret, name + "&attested=sgx"):
        refused(functools.partial(aws_kms.open_key, wrong), "root_key.kind")


# A TPM.


@needs_swtpm
@pytest.mark.tpm
def test_a_tpm_unseals_while_its_registers_are_what_they_were(tmp_path: Path) -> None:
    with software_tpm() as (running, _):

        def device(_: Path) -> Tpm:
            return kept(running.tpm)

        path = tmp_path / "root"
        made = tpm_sealed.make(f"{path}?pcrs=7+14", open_device=device)
        wrapped = made.wrap(MASTER, CONTEXT)
        running.tpm.extend(11, bytes(32))  # which is not among them
        again = tpm_sealed.open_key(str(path), open_device=device)
        assert again.unwrap(wrapped, CONTEXT) == MASTER
        content = json.loads(path.read_text())
        for change in ({"pcrs": [7]}, {"private": content["public"]}):
            altered = private(tmp_path / "altered", json.dumps({**content, **change}).encode())
            with pytest.raises(CloisterError):
                tpm_sealed.open_key(str(altered), open_device=device)
        running.tpm.extend(14, bytes(32))
        refused(lambda: tpm_sealed.open_key(str(path), open_device=device), "root_key.secret")


def unsealed_by_an_empty_password(tpm: Tpm, path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What TPM2_Unseal gives with a password session, whatever the registers hold."""
    sealed = tpm_sealed._parse(path.read_bytes())
    with monkeypatch.context() as changed:
        changed.setattr(
            tpm,
            "unseal",
            lambda handle, _: tpm._run(Command.UNSEAL, (handle,), sessions=_passwords(1)).sized(),
        )
        return unseal(tpm, sealed)


@needs_swtpm
@pytest.mark.tpm
def test_an_empty_password_unseals_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, open_to_all = tmp_path / "root", tmp_path / "open"
    template = tpm_sealing._sealed_template

    def with_password(policy: bytes) -> bytes:
        made = bytearray(template(policy))
        made[7] |= ObjectAttribute.USER_WITH_AUTH  # of the attributes, bytes 4 to 7
        return bytes(made)

    with software_tpm() as (running, _):

        def device(_: Path) -> Tpm:
            return kept(running.tpm)

        tpm_sealed.make(f"{path}?pcrs=14", open_device=device)
        with monkeypatch.context() as changed:
            changed.setattr(tpm_sealing, "_sealed_template", with_password)
            tpm_sealed.make(f"{open_to_all}?pcrs=14", open_device=device)
        for one in (path, open_to_all):
            tpm_sealed.open_key(str(one), open_device=device)
        running.tpm.extend(14, bytes(32))  # from now on the policy opens neither
        for one in (path, open_to_all):
            name = str(one)
            refused(functools.partial(tpm_sealed.open_key, name, open_device=device), SECRET)
        tpm = kept(running.tpm)
        assert len(unsealed_by_an_empty_password(tpm, open_to_all, monkeypatch)) == 32
        with pytest.raises(TpmError) as caught:
            unsealed_by_an_empty_password(tpm, path, monkeypatch)
        assert caught.value.response_code == TPM_RC_AUTH_UNAVAILABLE


@needs_swtpm
@pytest.mark.tpm
def test_registers_are_named_when_a_key_is_sealed(tmp_path: Path) -> None:
    for options in ("", "?pcrs=24", "?pcrs=", "?pcrs=x", "?pcrs=7,14"):
        name = f"{tmp_path}/root{options}"
        refused(functools.partial(tpm_sealed.make, name), "root_key.kind")
    absent = f"{tmp_path}/root?pcrs=7&device={tmp_path}/absent"
    refused(lambda: tpm_sealed.make(absent), "root_key.unreachable")


# Names.


def test_every_kind_is_opened_by_its_name(tmp_path: Path) -> None:
    name = f"development-file:{tmp_path}/root"
    wrapped = make_root_key(name).wrap(MASTER, CONTEXT)
    assert open_root_key(name).unwrap(wrapped, CONTEXT) == MASTER
    assert set(MAKERS) <= set(OPENERS)
    for kind in OPENERS:
        if kind != "development-file":
            with pytest.raises(CloisterError) as caught:
                open_root_key(f"{kind}:{tmp_path}/absent?unknown=1")
            assert caught.value.code == "root_key.kind"
    for wrong in ("", "vault", "vault:", "unknown:x"):
        refused(functools.partial(open_root_key, wrong), "root_key.kind")
    refused(lambda: make_root_key("vault:https://x/transit/root"), "root_key.kind")
