"""Roots come from the relying party, and are what they say."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cloister.endorsements.roots import MAX_ROOTS, Roots, fingerprint, name_of
from cloister.errors import ConfigurationError
from cloister.testing.simulated_tpm import SimulatedEnrolmentCa

CA = SimulatedEnrolmentCa(now=datetime(2026, 11, 3, tzinfo=UTC))


def test_pem_there_and_back() -> None:
    again = Roots.from_pem(CA.roots.to_pem() * 2)
    assert again.enrolment_cas == (CA.certificate, CA.certificate)
    assert again.fingerprints == (fingerprint(CA.certificate),) * 2
    assert name_of(CA.certificate) == "CN=Simulated enrolment CA"


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "roots.pem"
    path.write_bytes(CA.roots.to_pem())
    assert Roots.load(path, path).enrolment_cas == (CA.certificate, CA.certificate)


@pytest.mark.parametrize("data", [b"", b"nothing", CA.certificate.public_bytes(Encoding.DER)])
def test_what_is_no_pem_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(data)
    assert raised.value.code == "roots.malformed"


def test_the_certificate_of_a_key_is_no_root() -> None:
    leaf = CA.certify(ec.generate_private_key(ec.SECP256R1()).public_key())
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(leaf.public_bytes(Encoding.PEM))
    assert raised.value.code == "roots.not_a_ca"


def test_too_many_are_refused() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.from_pem(CA.roots.to_pem() * (MAX_ROOTS + 1))
    assert raised.value.code == "roots.many"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Roots.load(tmp_path / "missing.pem")
    assert raised.value.code == "roots.unreadable"
