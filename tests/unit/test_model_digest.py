"""What a model's digest covers."""

from __future__ import annotations

import hashlib

import pytest

from cloister.model_digest import Role, model_digest

WEIGHTS, OTHER = "1" * 64, "2" * 64


def test_a_model_of_one_file_has_that_files_digest() -> None:
    assert model_digest({Role.MODEL: WEIGHTS}) == WEIGHTS


def test_a_model_of_several_files_has_a_digest_of_them_all() -> None:
    written = (
        f'{{"files":{{"adapter":"{OTHER}","model":"{WEIGHTS}"}},"version":"cloister/model/1"}}'
    )
    digest = hashlib.sha256(written.encode()).hexdigest()
    assert model_digest({Role.MODEL: WEIGHTS, Role.ADAPTER: OTHER}) == digest
    assert model_digest({Role.ADAPTER: OTHER, Role.MODEL: WEIGHTS}) == digest


def test_every_file_and_its_role_count() -> None:
    found = {
        model_digest({Role.MODEL: WEIGHTS, role: digest})
        for role in Role
        if role is not Role.MODEL
        for digest in (WEIGHTS, OTHER)
    }
    assert len(found) == 6


def test_a_model_has_weights() -> None:
    for files in ({}, {Role.ADAPTER: OTHER}):
        with pytest.raises(ValueError, match="weights"):
            model_digest(files)
