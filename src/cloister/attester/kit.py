"""What a client on this machine pins: CA, reference values and policy, as three files.

On a development platform all three come from the machine that they are to check, so they only
show that the parts fit together. Elsewhere, compute the reference values yourself (``cloister
measure``) and get the CA's certificate from whoever runs it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.endorsements.roots import Roots
from cloister.verifier.policy import AppraisalPolicy
from cloister.verifier.reference_values import ReferenceValues

ENROLMENT_CA: Final = "enrolment-ca.pem"
REFERENCE_VALUES: Final = "reference-values.json"
POLICY: Final = "policy.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientKit:
    """The pins of one worker."""

    roots: Roots
    reference_values: ReferenceValues
    policy: AppraisalPolicy

    def write(self, directory: Path) -> None:
        """Write the three files into `directory`, each replaced as a whole."""
        directory.mkdir(parents=True, exist_ok=True)
        _replace(directory / ENROLMENT_CA, self.roots.to_pem())
        _replace(directory / REFERENCE_VALUES, self.reference_values.dump_json().encode())
        _replace(directory / POLICY, self.policy.dump_toml().encode())


def _replace(path: Path, content: bytes) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    Path(name).chmod(0o644)
    Path(name).replace(path)
