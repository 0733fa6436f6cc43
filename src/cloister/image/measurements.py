"""What a build leaves beside an image: its predicted registers, and what clients compare with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cloister.evidence.tpm import HASH_NAMES, Alg
from cloister.image.configuration import Platform
from cloister.image.eif_image import ENCLAVE_IMAGE, measurements_of, read_enclave_image
from cloister.image.golden import Golden
from cloister.image.image_files import ImageName, read_image
from cloister.image.pcrs import Prediction, predict
from cloister.image.references import machine_references, nitro_reference
from cloister.strictjson import JsonObject
from cloister.verifier.reference_values import ReferenceValues

MEASUREMENTS: Final = "measurements.json"
REFERENCE_VALUES: Final = "reference-values.json"


def write_measurements(folder: Path, golden: Sequence[Golden] = ()) -> tuple[str, ...]:
    """Measure the image in `folder`, Secure Boot off; the names of the files written there.

    `MEASUREMENTS` has every predicted event and register; `REFERENCE_VALUES` is written where
    `golden` has values of PCR 0 and 1, and for a NitroTPM without. Equal images and golden values
    give equal bytes.

    Raises:
        ConfigurationError, MalformedError, UnsupportedError: as `read_image`.
    """
    files = read_image(folder)
    prediction = predict(files.parts(), bank=bank_of(files.platform))
    references = machine_references(files, golden)
    (folder / MEASUREMENTS).write_text(
        json.dumps(describe(prediction), indent=1) + "\n", encoding="utf-8"
    )
    if not references:
        return (MEASUREMENTS,)
    values = ReferenceValues.from_platforms(*references)
    (folder / REFERENCE_VALUES).write_text(values.dump_json(), encoding="utf-8")
    return (MEASUREMENTS, REFERENCE_VALUES)


def write_enclave_measurements(folder: Path, name: ImageName) -> tuple[str, ...]:
    """The same for the enclave image in `folder`, whose registers need no golden values.

    Raises:
        ConfigurationError, MalformedError, UnsupportedError: as `read_enclave_image`.
    """
    measurements = measurements_of(read_enclave_image(folder / ENCLAVE_IMAGE))
    reference = nitro_reference(measurements, name)
    told = {register: {"value": values[0]} for register, values in reference.registers.items()}
    (folder / MEASUREMENTS).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    values = ReferenceValues.from_platforms(reference)
    (folder / REFERENCE_VALUES).write_text(values.dump_json(), encoding="utf-8")
    return (MEASUREMENTS, REFERENCE_VALUES)


def bank_of(platform: Platform) -> int:
    """The bank of registers that evidence of `platform` has."""
    return Alg.SHA384 if platform is Platform.NITRO_TPM else Alg.SHA256


def describe(prediction: Prediction) -> JsonObject:
    """Every register with its value and its events, in order, by name."""
    return {
        f"pcr{pcr}": {
            "value": value.hex(),
            "events": [
                {
                    "what": event.what,
                    HASH_NAMES[prediction.bank]: event.digests[prediction.bank].hex(),
                }
                for event in prediction.of(pcr)
            ],
        }
        for pcr, value in prediction.registers.items()
    }
