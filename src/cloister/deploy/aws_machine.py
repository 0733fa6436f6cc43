"""An AWS instance that starts from an image: SEV-SNP, or measured by a NitroTPM.

Sources: AWS, "Amazon EC2 API Reference" (`ImportSnapshot`, `RegisterImage`, `RunInstances`) and
"EC2 User Guide": "AMD SEV-SNP for Amazon EC2 instances", "NitroTPM for Amazon EC2 instances",
"Attestable AMIs"; "VM Import/Export User Guide" (a role named ``vmimport`` has to exist).

Calls with many parameters take them from a JSON file (``--cli-input-json``), whose members are the
API's own. The instance gets no key pair, no role, no user data and no metadata service.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from cloister.deploy import words
from cloister.deploy.cloud import (
    IPV4,
    NO_CERTIFICATE,
    disk_step,
    image_name,
    inputs,
    resource_name,
    start_name,
)
from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import Filter
from cloister.deploy.plan import (
    Argument,
    Capture,
    Captured,
    Expect,
    Look,
    Plan,
    Run,
    Step,
    Tool,
    Write,
)
from cloister.image.configuration import Platform
from cloister.strictjson import Json, JsonObject

AWS: Final = Tool(
    name="aws", version=("--version",), minimum=(2, 15), get="AWS CLI, docs.aws.amazon.com/cli"
)
_TASK: Final = Captured(name="task")
_SNAPSHOT: Final = Captured(name="snapshot")
_START_TASK: Final = Captured(name="start-task")
_START: Final = Captured(name="start-snapshot")
_AMI: Final = Captured(name="ami")
_GROUP: Final = Captured(name="group")
_INSTANCE: Final = Captured(name="instance")
_ID: Final = "-[0-9a-f]{8,17}"


class Protection(StrEnum):
    """What identifies and protects the guest."""

    SNP = "snp"
    NITROTPM = "nitrotpm"


ENDS: Final = NO_CERTIFICATE.format(
    "a NitroTPM brings no certificate. The guest ends and says so (guest.no_certificate): for the"
    " NitroTPM's own documents deploy to aws nitrotpm."
)
NOTES: Final = {
    Protection.SNP: (
        "Never tried on AWS. Parameters were checked against the API's own model.",
        ENDS,
        "SEV-SNP is there on some machine types (m6a, c6a, r6a) in some regions only.",
        "The launch digest covers AWS's firmware and nothing of this image. Only a NitroTPM's "
        "registers do, so that a client has to compare both; Cloister's verifier has no platform "
        "for the two together yet. Do not accept the launch digest alone.",
    ),
    Protection.NITROTPM: (
        "Never tried on AWS. Parameters were checked against the API's own model.",
        "A NitroTPM measures software; memory is AWS's word. Its document is AWS's signature.",
        "AWS documents PCR 4, 7 and 12 as predictable. What else the reference values list follows "
        "from the firmware profile; compare it once with an instance that you trust.",
    ),
}
PLATFORM: Final = {
    Protection.SNP: Platform.TPM_BOOT,
    Protection.NITROTPM: Platform.NITRO_TPM,
}
"""What an image has to be built for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in AWS.

    Raises:
        ConfigurationError: a word cannot be used.
    """

    region: str
    bucket: str
    """Holds the disk until it is a snapshot."""
    vpc: str
    subnet: str
    machine_type: str

    def __post_init__(self) -> None:
        """Check every word."""
        words.REGION.check(self.region)
        words.BUCKET.check(self.bucket)
        words.VPC_ID.check(self.vpc)
        words.SUBNET_ID.check(self.subnet)
        words.MACHINE_TYPE.check(self.machine_type)


def aws_machine_plan(
    deployment: Deployment, place: Place, allowed: Filter, protection: Protection
) -> Plan:
    """The plan: disk, snapshot, AMI, security group, instance.

    Raises:
        ConfigurationError: the image lacks a part, was built for another platform, or a word cannot
            be used.
    """
    deployment.image.require_platform(PLATFORM[protection])
    make = _Steps(deployment, place, allowed, protection)
    return Plan(
        target=f"aws-{protection}",
        name=deployment.name,
        folder=deployment.folder,
        tools=(AWS,),
        inputs=inputs(deployment),
        steps=(
            *make.snapshot(),
            *make.start_snapshot(),
            *make.ami(),
            *make.group(),
            *make.instance(),
        ),
        notes=NOTES[protection],
    )


def register_image(name: str, snapshot: str) -> JsonObject:
    """Parameters of `RegisterImage`."""
    ebs: JsonObject = {"SnapshotId": snapshot, "VolumeType": "gp3", "DeleteOnTermination": True}
    return {
        "Name": name,
        "Architecture": "x86_64",
        "VirtualizationType": "hvm",
        "BootMode": "uefi",
        "EnaSupport": True,
        "ImdsSupport": "v2.0",
        # Under SEV-SNP too: AWS's firmware is all that the launch digest covers there.
        "TpmSupport": "v2.0",
        "RootDeviceName": "/dev/xvda",
        "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": ebs}],
    }


def run_instances(deployment: Deployment, place: Place, protection: Protection) -> JsonObject:
    """Parameters of `RunInstances`, with what earlier steps made written as ``{ami}`` and so on."""
    name = resource_name(deployment)
    ebs: JsonObject = {
        "SnapshotId": "{start-snapshot}",
        "VolumeType": "gp3",
        "DeleteOnTermination": True,
    }
    request: JsonObject = {
        "ImageId": "{ami}",
        "InstanceType": place.machine_type,
        "MinCount": 1,
        "MaxCount": 1,
        "SubnetId": place.subnet,
        "SecurityGroupIds": ["{group}"],
        "BlockDeviceMappings": [{"DeviceName": "/dev/sdf", "Ebs": ebs}],
        "MetadataOptions": {"HttpEndpoint": "disabled", "HttpTokens": "required"},
        # A second start is another boot, with registers that begin anew; a stop leaves nothing.
        "InstanceInitiatedShutdownBehavior": "terminate",
        "TagSpecifications": [
            {"ResourceType": "instance", "Tags": [{"Key": "Name", "Value": name}]}
        ],
    }
    if deployment.address:
        request["PrivateIpAddress"] = deployment.address  # the guest asks nobody for one
    if protection is Protection.SNP:
        request["CpuOptions"] = {"AmdSevSnp": "enabled"}
    return request


def ingress(allowed: Filter, group: str) -> JsonObject:
    """Parameters of `AuthorizeSecurityGroupIngress`."""
    return {"GroupId": group, "IpPermissions": [_permission(allowed.port, allowed.sources)]}


def egress(allowed: Filter, group: str) -> JsonObject:
    """Parameters of `AuthorizeSecurityGroupEgress`, for a filter with peers."""
    rules: list[Json] = [_permission(peer.port, (peer.range,)) for peer in allowed.peers]
    return {"GroupId": group, "IpPermissions": rules}


def _permission(port: int, ranges: tuple[str, ...]) -> JsonObject:
    rule: JsonObject = {"IpProtocol": "tcp", "FromPort": port, "ToPort": port}
    four: list[Json] = [{"CidrIp": one} for one in ranges if ":" not in one]
    six: list[Json] = [{"CidrIpv6": one} for one in ranges if ":" in one]
    if four:
        rule["IpRanges"] = four
    if six:
        rule["Ipv6Ranges"] = six
    return rule


class _Steps:
    """The steps of one plan, in groups."""

    def __init__(
        self, deployment: Deployment, place: Place, allowed: Filter, protection: Protection
    ) -> None:
        self._deployment = deployment
        self._place = place
        self._allowed = allowed
        self._protection = protection
        self._image_name = image_name(deployment)
        self._disk = disk_step(deployment)

    def snapshot(self) -> tuple[Step, ...]:
        name, source = self._image_name, self._disk.target
        return (self._disk, *self._snapshot(("", "the disk"), name, source, _TASK, _SNAPSHOT))

    def start_snapshot(self) -> tuple[Step, ...]:
        """Of the start disk, from which the instance gets a volume that goes with it."""
        start = self._deployment.required_start_disk()
        name = start_name(self._deployment)
        return self._snapshot(("start-", "the start disk"), name, start.path, _START_TASK, _START)

    def _snapshot(
        self, words_: tuple[str, str], name: str, source: Path, task: Captured, made: Captured
    ) -> tuple[Step, ...]:
        """Steps that make a snapshot, `made`, of a disk, which is called `name`.

        `words_` are the beginning of the steps' names, and how people call the disk.
        """
        prefix, what = words_
        key = f"{name}.raw"
        bucket = self._place.bucket
        address = f"s3://{bucket}/{key}"
        import_request: JsonObject = {
            "Description": name,
            "DiskContainer": {
                "Description": name,
                "Format": "RAW",
                "UserBucket": {"S3Bucket": bucket, "S3Key": key},
            },
        }
        tasks = ("describe-import-snapshot-tasks",)
        wanted = f"ImportSnapshotTasks[?Description=='{name}'].ImportTaskId | [0]"
        return (
            Run(
                id=f"{prefix}upload",
                says=f"Upload {what}.",
                argv=(*self._aws("s3", "cp"), str(source), address, "--only-show-errors"),
                undo=(*self._aws("s3", "rm"), address, "--only-show-errors"),
            ),
            self._file(f"{prefix}import-request", f"{prefix}import.json", import_request),
            Run(
                id=f"{prefix}import",
                says=f"Begin to make a snapshot of {what}.",
                argv=self._request("import-snapshot", f"{prefix}import.json", "ImportTaskId"),
                capture=Capture(name=task.name, pattern=f"import-snap{_ID}"),
                look=Look(argv=self._ask(*tasks, query=wanted)),
            ),
            Run(
                id=f"{prefix}imported",
                says="Wait for the snapshot; this takes minutes.",
                argv=(
                    *self._aws("ec2", "wait", "snapshot-imported"),
                    *("--import-task-ids", task),
                ),
                tries=12,
                pause_s=15,
            ),
            Run(
                id=f"{prefix}snapshot",
                says="Ask which snapshot it became.",
                argv=self._ask(
                    *(*tasks, "--import-task-ids", task),
                    query="ImportSnapshotTasks[0].SnapshotTaskDetail.SnapshotId",
                ),
                capture=Capture(name=made.name, pattern=f"snap{_ID}"),
                undo=(*self._aws("ec2", "delete-snapshot"), "--snapshot-id", made),
            ),
        )

    def ami(self) -> tuple[Step, ...]:
        named = ("--filters", f"Name=name,Values={self._image_name}")
        request = register_image(self._image_name, "{snapshot}")
        return (
            self._file("image-request", "image.json", request, _SNAPSHOT),
            Run(
                id="image",
                says="Register the image.",
                argv=self._request("register-image", "image.json", "ImageId"),
                capture=Capture(name="ami", pattern=f"ami{_ID}"),
                look=Look(
                    argv=self._ask(
                        *("describe-images", "--owners", "self", *named), query="Images[0].ImageId"
                    )
                ),
                undo=(*self._aws("ec2", "deregister-image"), "--image-id", _AMI),
            ),
        )

    def group(self) -> tuple[Step, ...]:
        name = resource_name(self._deployment)
        vpc = self._place.vpc
        filters = f"Name=group-name,Values={name}", f"Name=vpc-id,Values={vpc}"
        group = ("--group-ids", _GROUP)
        count = "length(SecurityGroups[0].{})"
        steps: list[Step] = [
            Run(
                id="group",
                says="Make a security group.",
                argv=(
                    *self._aws("ec2", "create-security-group"),
                    *("--group-name", name, "--description", name, "--vpc-id", vpc),
                    *("--query", "GroupId", "--output", "text"),
                ),
                capture=Capture(name="group", pattern=f"sg{_ID}"),
                look=Look(
                    argv=self._ask(
                        *("describe-security-groups", "--filters", *filters),
                        query="SecurityGroups[0].GroupId",
                    )
                ),
                undo=(*self._aws("ec2", "delete-security-group"), "--group-id", _GROUP),
                # As long as the instance is going, AWS keeps its group.
                undo_tries=20,
                pause_s=15,
            ),
            Run(
                id="nothing-out",
                says="Let nothing out: take away the rule that AWS begins with.",
                argv=(
                    *self._aws("ec2", "revoke-security-group-egress"),
                    *("--group-id", _GROUP, "--protocol", "all", "--cidr", "0.0.0.0/0"),
                ),
                look=Look(
                    argv=self._ask(
                        *("describe-security-groups", *group),
                        query=count.format("IpPermissionsEgress"),
                    ),
                    finds="0",
                ),
            ),
            self._file("in-request", "in.json", ingress(self._allowed, "{group}"), _GROUP),
            self._authorize("in", "ingress", "in.json", count.format("IpPermissions")),
        ]
        if self._allowed.peers:
            steps += [
                self._file("out-request", "out.json", egress(self._allowed, "{group}"), _GROUP),
                self._authorize("out", "egress", "out.json", count.format("IpPermissionsEgress")),
            ]
        return tuple(steps)

    def _authorize(self, step: str, direction: str, file: str, count: str) -> Run:
        return Run(
            id=step,
            says={
                "in": "Let in who was named, on the worker's port.",
                "out": "Let out what was named.",
            }[step],
            argv=self._request(f"authorize-security-group-{direction}", file, "Return"),
            look=Look(
                argv=self._ask("describe-security-groups", "--group-ids", _GROUP, query=count),
                finds="[1-9][0-9]*",
            ),
        )

    def instance(self) -> tuple[Step, ...]:
        request = run_instances(self._deployment, self._place, self._protection)
        one = ("describe-instances", "--instance-ids", _INSTANCE)
        first = "Reservations[0].Instances[0]"
        mine = (
            *(
                "describe-instances",
                "--filters",
                f"Name=tag:Name,Values={resource_name(self._deployment)}",
            ),
            "Name=instance-state-name,Values=pending,running",
            ("Name=image-id,Values=", _AMI),
        )
        member, value = (
            ("CpuOptions.AmdSevSnp", "enabled")
            if self._protection is Protection.SNP
            else ("TpmSupport", "v2.0")
        )
        return (
            self._file("instance-request", "instance.json", request, _AMI, _GROUP, _START),
            Run(
                id="instance",
                says="Start the instance.",
                argv=self._request("run-instances", "instance.json", "Instances[0].InstanceId"),
                capture=Capture(name="instance", pattern=f"i{_ID}"),
                look=Look(argv=self._ask(*mine, query=f"{first}.InstanceId")),
                undo=(*self._aws("ec2", "terminate-instances"), "--instance-ids", _INSTANCE),
            ),
            Run(
                id="running",
                says="Wait until it runs.",
                argv=(*self._aws("ec2", "wait", "instance-running"), "--instance-ids", _INSTANCE),
                tries=2,
                pause_s=15,
            ),
            Run(
                id="protected",
                says="Ask AWS whether it is protected as it was asked for.",
                argv=(
                    *self._aws("ec2", *one),
                    *("--query", f"{first}.{{found: {member}}}", "--output", "json"),
                ),
                expects=(Expect(says=f"{member} is {value}", member=("found",), equals=value),),
            ),
            Run(
                id="address",
                says="Ask for its address.",
                argv=self._ask(*one, query=f"{first}.PublicIpAddress || {first}.PrivateIpAddress"),
                capture=Capture(name="address", pattern=IPV4),
            ),
        )

    def _aws(self, *words_: Argument) -> tuple[Argument, ...]:
        service, *rest = words_
        return ("aws", "--region", self._place.region, service, *rest)

    def _ask(self, *words_: Argument, query: str) -> tuple[Argument, ...]:
        return (*self._aws("ec2", *words_), "--query", query, "--output", "text")

    def _request(self, operation: str, file: str, query: str) -> tuple[Argument, ...]:
        path = self._deployment.folder / file
        return self._ask(operation, "--cli-input-json", f"file://{path}", query=query)

    def _file(self, step: str, name: str, request: JsonObject, *values: Captured) -> Write:
        return Write(
            id=step,
            says=f"Write the parameters of the next call to {name}.",
            path=self._deployment.folder / name,
            content=_template(request, values),
        )


def _template(request: JsonObject, values: tuple[Captured, ...]) -> Argument:
    """JSON with a captured value wherever ``{name}`` stands for it; patterns keep quotes out."""
    pieces: list[str | Captured] = [json.dumps(request, indent=2) + "\n"]
    for value in values:
        split: list[str | Captured] = []
        for piece in pieces:
            if isinstance(piece, Captured):
                split.append(piece)
                continue
            before, *after = piece.split(f"{{{value.name}}}")
            split.append(before)
            for text in after:
                split += [value, text]
        pieces = split
    return tuple(pieces)
