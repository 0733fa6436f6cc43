"""A Nitro enclave on an instance that has them switched on; the plan runs on that instance.

Sources: AWS, "AWS Nitro Enclaves User Guide" (``nitro-cli run-enclave``, ``describe-enclaves``,
``describe-eif``; memory of at least four times the image) and ``aws-nitro-enclaves-cli``
(``bootstrap/allocator.yaml``; JSON members of its answers).

Never in debug mode: an enclave with an attached console has registers of zero, and no policy
accepts it. The enclave has no network; a service of the instance carries bytes between its port and
the enclave's vsock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.deployment import MIB, Deployment
from cloister.deploy.plan import Expect, Look, Plan, Run, Step, Tool, Write
from cloister.errors import ConfigurationError, MalformedError
from cloister.image.configuration import Platform

ALLOCATOR: Final = "/etc/nitro_enclaves/allocator.yaml"
UNITS: Final = "/etc/systemd/system"
MEMORY_FACTOR: Final = 4
"""The enclave's memory has to hold the image, unpacked."""
NOTES: Final = (
    "Never tried on AWS: there is no Nitro hypervisor here.",
    "Allocating takes memory and processors from the instance, for all of its enclaves.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Enclave:
    """Its size and its place on the vsock.

    Raises:
        ConfigurationError: a value is out of bounds (code ``deploy.machine``).
    """

    vcpus: int
    memory_mib: int
    cid: int = 16
    listen: str = "0.0.0.0"  # noqa: S104 - the instance's security group says who gets here
    program: Path = Path("/usr/local/bin/cloister")
    """Cloister on the instance, for the service that forwards."""

    def __post_init__(self) -> None:
        """Refuse what no enclave has."""
        if not 1 <= self.vcpus <= 512 or not 64 <= self.memory_mib <= 16 * MIB:
            raise ConfigurationError(
                "an enclave has 1 to 512 processors, and 64 MiB to 16 TiB of memory",
                code="deploy.machine",
            )
        if not 4 <= self.cid <= 0xFFFFFFFE:
            raise ConfigurationError(
                "an enclave's CID is 4 or larger: those below are the host's and the instance's",
                code="deploy.machine",
            )
        words.guest_address(self.listen)
        words.check_path(self.program, "the program")
        if " " in str(self.program):
            raise ConfigurationError("the program's path holds a space", code="deploy.path")


def aws_nitro_plan(deployment: Deployment, enclave: Enclave) -> Plan:
    """The plan for one enclave.

    Raises:
        ConfigurationError: the image is unusable, or too large for the memory.
    """
    deployment.image.require_platform(Platform.NITRO)
    eif = deployment.image.file("eif")
    if enclave.memory_mib * MIB < MEMORY_FACTOR * eif.size:
        needed = -(-MEMORY_FACTOR * eif.size // MIB)
        raise ConfigurationError(
            f"the enclave needs {needed} MiB of memory or more, four times its image",
            code="deploy.machine",
        )
    pcr0 = predicted_pcr0(eif.path)
    name = deployment.name
    unit = f"cloister-forward-{name}.service"
    forward = deployment.folder / unit
    allocator = deployment.folder / "allocator.yaml"
    mine = ("EnclaveName", name)
    running = rf'"EnclaveName":\s*"{name}"[^{{}}]*"State":\s*"RUNNING"'
    steps: tuple[Step, ...] = (
        Run(
            id="describe",
            says="Let AWS' own tool say what the image measures.",
            argv=("nitro-cli", "describe-eif", "--eif-path", str(eif.path)),
            expects=(
                Expect(says=f"PCR0 is {pcr0}", member=("Measurements", "PCR0"), equals=pcr0),
                Expect(says="CheckCRC is true", member=("CheckCRC",), equals="true"),
            ),
        ),
        Write(
            id="allocator",
            says="Write how much the enclave takes from the instance.",
            path=allocator,
            content=f"---\nmemory_mib: {enclave.memory_mib}\ncpu_count: {enclave.vcpus}\n",
        ),
        Run(
            id="allocate",
            says="Put that where the allocator reads it.",
            argv=("sudo", "install", "-m", "0644", str(allocator), ALLOCATOR),
        ),
        Run(
            id="allocated",
            says="Set it aside.",
            argv=("sudo", "systemctl", "restart", "nitro-enclaves-allocator.service"),
        ),
        Run(
            id="run",
            says="Start the enclave, without a console.",
            argv=(
                *("nitro-cli", "run-enclave", "--eif-path", str(eif.path)),
                *("--cpu-count", str(enclave.vcpus), "--memory", str(enclave.memory_mib)),
                *("--enclave-cid", str(enclave.cid), "--enclave-name", name),
            ),
            look=Look(argv=("nitro-cli", "describe-enclaves"), finds=rf"(?s).*{running}.*"),
            undo=("nitro-cli", "terminate-enclave", "--enclave-name", name),
        ),
        Run(
            id="running",
            says="Ask for the running enclave's mode and measurement.",
            argv=("nitro-cli", "describe-enclaves"),
            expects=(
                Expect(says=f"{name} is RUNNING", member=(mine, "State"), equals="RUNNING"),
                Expect(says="its Flags are NONE", member=(mine, "Flags"), equals="NONE"),
                Expect(
                    says=f"its PCR0 is {pcr0}", member=(mine, "Measurements", "PCR0"), equals=pcr0
                ),
            ),
        ),
        Write(
            id="forward",
            says="Write a service that carries bytes between the instance's port and the enclave.",
            path=forward,
            content=_unit(deployment, enclave),
        ),
        Run(
            id="install",
            says="Put the service where systemd reads it.",
            argv=("sudo", "install", "-m", "0644", str(forward), f"{UNITS}/{unit}"),
            undo=("sudo", "rm", "-f", f"{UNITS}/{unit}"),
        ),
        Run(id="reload", says="Tell systemd.", argv=("sudo", "systemctl", "daemon-reload")),
        Run(
            id="serve",
            says="Start it, now and after each boot.",
            argv=("sudo", "systemctl", "enable", "--now", unit),
            undo=("sudo", "systemctl", "disable", "--now", unit),
        ),
    )
    return Plan(
        target="aws-nitro",
        name=name,
        folder=deployment.folder,
        tools=(
            Tool(
                name="nitro-cli",
                version=("--version",),
                minimum=(1, 2),
                get="package aws-nitro-enclaves-cli",
            ),
            Tool(name="sudo"),
            Tool(name="systemctl"),
        ),
        inputs=(eif,),
        steps=steps,
        notes=NOTES,
    )


def predicted_pcr0(eif: Path) -> str:
    """PCR0 of an enclave that starts from this image, by Cloister's own reader.

    Raises:
        ConfigurationError: it is no enclave image (code ``deploy.image``).
    """
    from cloister.image.eif import read_eif

    try:
        with eif.open("rb") as opened:
            return read_eif(opened).content.measurements(None).pcr0.hex()
    except MalformedError as error:
        raise ConfigurationError(str(error), code="deploy.image") from None
    except OSError as error:
        raise ConfigurationError(
            f"{eif} cannot be read: {error.strerror}", code="deploy.image"
        ) from None


def _unit(deployment: Deployment, enclave: Enclave) -> str:
    """The service: it sees sealed bytes only, and may do nothing but carry them."""
    port = deployment.port
    return (
        "[Unit]\n"
        f"Description=Carries bytes to the enclave {deployment.name}\n"
        "After=network.target\n\n"
        "[Service]\n"
        f"ExecStart={enclave.program} forward tcp://{enclave.listen}:{port} "
        f"vsock://{enclave.cid}:{port}\n"
        "Restart=always\nDynamicUser=yes\nNoNewPrivileges=yes\nProtectSystem=strict\n"
        "ProtectHome=yes\nPrivateTmp=yes\nCapabilityBoundingSet=\n"
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_VSOCK AF_UNIX\n\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
