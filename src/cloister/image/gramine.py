"""A worker inside SGX by Gramine: the manifest to start from, and what its signer measured.

Sources: Gramine documentation, "Manifest syntax"; Intel SDM volume 3D, section 38.13 (SIGSTRUCT,
1808 bytes, little-endian), which ``gramine-sgx-sign`` writes as ``worker.sig``. MRENCLAVE is left
to that signer, who builds the enclave's pages; here it is only read.

Unproven: no enclave was started from such a manifest here. Inside Gramine there is no second
sandbox: the worker and its engine are one enclave, which a strict policy does not accept.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from cloister.errors import ConfigurationError, MalformedError

CODE: Final = "image.sigstruct"

SIGSTRUCT_BYTES: Final = 1808
_HEADERS: Final = (
    (0, bytes.fromhex("06000000e10000000000010000000000")),
    (24, bytes.fromhex("01010000600000006000000001000000")),
)
"""Where the two constant headers stand."""
_MODULUS: Final = slice(128, 512)
_ATTRIBUTES: Final = slice(928, 936)
_MRENCLAVE: Final = slice(960, 992)
_PRODUCT: Final = slice(1024, 1026)
_VERSION: Final = slice(1026, 1028)
_DEBUG: Final = 0x2


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveSignature:
    """What a SIGSTRUCT names. The signature itself is the processor's to check."""

    mrenclave: bytes
    mrsigner: bytes
    product: int
    version: int
    debug: bool
    """Whether the signer allows the enclave to be debugged."""


def parse_sigstruct(data: bytes) -> EnclaveSignature:
    """Decode what ``gramine-sgx-sign`` wrote.

    Raises MalformedError (code ``image.sigstruct``), and nothing else.
    """
    if len(data) != SIGSTRUCT_BYTES:
        raise MalformedError(
            f"an enclave's signature has {SIGSTRUCT_BYTES} bytes, not {len(data)}", code=CODE
        )
    if any(data[at : at + len(header)] != header for at, header in _HEADERS):
        raise MalformedError("an enclave's signature has another header", code=CODE)
    return EnclaveSignature(
        mrenclave=data[_MRENCLAVE],
        mrsigner=hashlib.sha256(data[_MODULUS]).digest(),
        product=int.from_bytes(data[_PRODUCT], "little"),
        version=int.from_bytes(data[_VERSION], "little"),
        debug=bool(int.from_bytes(data[_ATTRIBUTES], "little") & _DEBUG),
    )


def worker_manifest(
    *, python: str, folders: tuple[str, ...], arguments: tuple[str, ...], enclave_size: str = "8G"
) -> str:
    """A manifest template for Gramine that runs a worker.

    `python` is the interpreter, `folders` are all that it may read: each is mounted read-only, and
    every file in it is measured. `arguments` follow the interpreter, and are measured.

    Raises:
        ConfigurationError: a path is not absolute (code ``image.sgx_manifest``).
    """
    for path in (python, *folders):
        if not path.startswith("/"):
            raise ConfigurationError(f"{path} is not absolute", code="image.sgx_manifest")
    mounts = "".join(
        f"  {{ path = {_t(path)}, uri = {_t('file:' + path)} }},\n" for path in folders
    )
    trusted = "".join(f"  {_t(f'file:{path}/')},\n" for path in folders)
    argv = ", ".join(map(_t, (python, *arguments)))
    return f"""\
# Gramine manifest of a Cloister worker: render with gramine-manifest, sign with gramine-sgx-sign.
loader.entrypoint.uri = "file:{{{{ gramine.libos }}}}"
libos.entrypoint = {_t(python)}
loader.argv = [{argv}]
loader.log_level = "error"
loader.env.LD_LIBRARY_PATH = "/lib:{{{{ arch_libdir }}}}:/usr{{{{ arch_libdir }}}}"
loader.env.PYTHONDONTWRITEBYTECODE = "1"

fs.mounts = [
  {{ path = "/lib", uri = "file:{{{{ gramine.runtimedir() }}}}" }},
  {{ path = "{{{{ arch_libdir }}}}", uri = "file:{{{{ arch_libdir }}}}" }},
{mounts}  {{ type = "tmpfs", path = "/tmp" }},
]

sys.insecure__allow_eventfd = false
sys.stack.size = "8M"
sgx.debug = false
sgx.edmm_enable = false
sgx.enclave_size = {_t(enclave_size)}
sgx.max_threads = 64
sgx.remote_attestation = "dcap"
sgx.file_check_policy = "strict"
sgx.trusted_files = [
  "file:{{{{ gramine.libos }}}}",
  "file:{{{{ gramine.runtimedir() }}}}/",
  "file:{{{{ arch_libdir }}}}/",
{trusted}]
"""


def _t(text: str) -> str:
    return json.dumps(text)
