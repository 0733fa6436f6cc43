"""The same deployments as Terraform modules, for those who keep their machines that way.

Source: Terraform, "JSON Configuration Syntax"; the registry's pages on ``hashicorp/aws``,
``hashicorp/google`` and ``hashicorp/azurerm``. A module is one ``main.tf.json``, made by a JSON
encoder from checked words, none of which can hold ``${`` or ``%{``. The disk that it uploads is
made by `cloister deploy convert` first.

``azurerm`` starts no machine from a specialized image, so Azure's module ends at the image, the
security group and its rules; `cloister deploy azure` makes the start disk and starts the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from cloister.deploy import aws_machine, azure, google
from cloister.deploy.cloud import image_name, resource_name, start_name
from cloister.deploy.deployment import Deployment
from cloister.deploy.ingress import Filter
from cloister.strictjson import Json, JsonObject

FILE: Final = "main.tf.json"
_VERSIONS: Final = {"aws": ">= 6.0", "google": ">= 6.0", "azurerm": ">= 4.0"}


def aws_module(
    deployment: Deployment,
    place: aws_machine.Place,
    allowed: Filter,
    protection: aws_machine.Protection,
) -> JsonObject:
    """Bucket object, snapshot, AMI, security group and instance."""
    deployment.image.require_platform(aws_machine.PLATFORM[protection])
    name = resource_name(deployment)
    image = image_name(deployment)
    instance: JsonObject = {
        "ami": "${aws_ami.image.id}",
        "instance_type": place.machine_type,
        "subnet_id": place.subnet,
        "vpc_security_group_ids": ["${aws_security_group.worker.id}"],
        "instance_initiated_shutdown_behavior": "terminate",
        "metadata_options": {"http_endpoint": "disabled", "http_tokens": "required"},
        "tags": {"Name": name},
        "ebs_block_device": {
            "device_name": "/dev/sdf",
            "snapshot_id": "${aws_ebs_snapshot_import.start.id}",
            "volume_type": "gp3",
            "delete_on_termination": True,
        },
    }
    if deployment.address:
        instance["private_ip"] = deployment.address
    if protection is aws_machine.Protection.SNP:
        instance["cpu_options"] = {"amd_sev_snp": "enabled"}
    rules: list[Json] = [_security_rule(peer.port, (peer.range,)) for peer in allowed.peers]
    disks = {
        "disk": (image, deployment.folder / "disk.raw"),
        "start": (start_name(deployment), deployment.required_start_disk().path),
    }
    resources: JsonObject = {
        "aws_s3_object": {disk: _s3_object(place, *one) for disk, one in disks.items()},
        "aws_ebs_snapshot_import": {
            disk: _snapshot(disk, name) for disk, (name, _) in disks.items()
        },
        "aws_ami": {
            "image": {
                "name": image,
                "architecture": "x86_64",
                "virtualization_type": "hvm",
                "boot_mode": "uefi",
                "ena_support": True,
                "imds_support": "v2.0",
                "tpm_support": "v2.0",
                "root_device_name": "/dev/xvda",
                "ebs_block_device": {
                    "device_name": "/dev/xvda",
                    "snapshot_id": "${aws_ebs_snapshot_import.disk.id}",
                    "volume_type": "gp3",
                    "delete_on_termination": True,
                },
            }
        },
        "aws_security_group": {
            "worker": {
                "name": name,
                "description": name,
                "vpc_id": place.vpc,
                "ingress": [_security_rule(allowed.port, allowed.sources)],
                # An empty list takes away the rule that AWS begins with.
                "egress": rules,
            }
        },
        "aws_instance": {"worker": instance},
    }
    outputs: JsonObject = {
        "address": {
            "value": "${coalesce(aws_instance.worker.public_ip, aws_instance.worker.private_ip)}"
        }
    }
    return _module("aws", {"region": place.region}, resources, outputs)


def _s3_object(place: aws_machine.Place, name: str, source: Path) -> JsonObject:
    return {"bucket": place.bucket, "key": f"{name}.raw", "source": str(source)}


def _snapshot(disk: str, name: str) -> JsonObject:
    """A snapshot of the bucket's object that is called like it."""
    container: JsonObject = {
        "description": name,
        "format": "RAW",
        "user_bucket": {
            "s3_bucket": f"${{aws_s3_object.{disk}.bucket}}",
            "s3_key": f"${{aws_s3_object.{disk}.key}}",
        },
    }
    return {"description": name, "disk_container": container}


def google_module(
    deployment: Deployment, place: google.Place, allowed: Filter, kind: google.Kind
) -> JsonObject:
    """Bucket object, image, firewall rules and machine."""
    deployment.image.require_platform(google.PLATFORM[kind])
    name = resource_name(deployment)
    image = image_name(deployment)
    start = start_name(deployment)
    card: JsonObject = {"network": place.network, "nic_type": "GVNIC"}
    if place.subnet:
        card["subnetwork"] = place.subnet
    if deployment.address:
        card["network_ip"] = deployment.address
    if place.public:
        card["access_config"] = {}
    features: list[Json] = [{"type": feature} for feature in google.guest_features(kind)]
    confidential: JsonObject = {}
    if kind in google.TYPE:
        confidential = {
            "confidential_instance_config": {"confidential_instance_type": google.TYPE[kind]},
            "scheduling": {"on_host_maintenance": "TERMINATE"},
        }
    rules: dict[str, JsonObject] = {
        "in": {
            "direction": "INGRESS",
            "priority": 900,
            "source_ranges": list(allowed.sources),
            "allow": {"protocol": "tcp", "ports": [str(allowed.port)]},
        },
        "no-in": {
            "direction": "INGRESS",
            "priority": 901,
            "source_ranges": ["0.0.0.0/0"],
            "deny": {"protocol": "all"},
        },
        "no-out": {
            "direction": "EGRESS",
            "priority": 901,
            "destination_ranges": ["0.0.0.0/0"],
            "deny": {"protocol": "all"},
        },
    }
    for number, peer in enumerate(allowed.peers):
        rules[f"out-{number}"] = {
            "direction": "EGRESS",
            "priority": 900,
            "destination_ranges": [peer.range],
            "allow": {"protocol": "tcp", "ports": [str(peer.port)]},
        }
    firewall: JsonObject = {
        rule: {
            "name": f"{name}-{rule}",
            "network": place.network,
            "target_tags": [name],
            **members,
        }
        for rule, members in rules.items()
    }
    resources: JsonObject = {
        "google_storage_bucket_object": {
            "disk": _google_object(place, image, deployment.folder / "disk.tar.gz"),
            "start": _google_object(place, start, deployment.folder / "start.tar.gz"),
        },
        "google_compute_image": {
            "image": {"guest_os_features": features, **_google_image(place, image, "disk")},
            "start": _google_image(place, start, "start"),
        },
        # The smallest balanced disk has 10 GB; the guest finds it by its beginning.
        "google_compute_disk": {
            "start": {
                "name": start,
                "zone": place.zone,
                "type": "pd-balanced",
                "size": 10,
                "image": "${google_compute_image.start.self_link}",
            }
        },
        "google_compute_firewall": firewall,
        "google_compute_instance": {
            "worker": {
                "name": name,
                "zone": place.zone,
                "machine_type": place.machine_type,
                "tags": [name],
                "boot_disk": {
                    "initialize_params": {"image": "${google_compute_image.image.self_link}"}
                },
                "attached_disk": {
                    "source": "${google_compute_disk.start.self_link}",
                    "mode": "READ_ONLY",
                },
                **confidential,
                "shielded_instance_config": {
                    "enable_vtpm": True,
                    "enable_integrity_monitoring": True,
                    "enable_secure_boot": False,
                },
                "network_interface": card,
            }
        },
    }
    access = "network_interface[0].access_config[0].nat_ip"
    address = access if place.public else "network_interface[0].network_ip"
    outputs: JsonObject = {"address": {"value": f"${{google_compute_instance.worker.{address}}}"}}
    return _module("google", {"project": place.project}, resources, outputs)


def _google_object(place: google.Place, name: str, source: Path) -> JsonObject:
    return {"bucket": place.bucket, "name": f"{name}.tar.gz", "source": str(source)}


def _google_image(place: google.Place, name: str, disk: str) -> JsonObject:
    """An image of the bucket's object."""
    address = (
        f"https://storage.googleapis.com/{place.bucket}/"
        f"${{google_storage_bucket_object.{disk}.name}}"
    )
    return {"name": name, "raw_disk": {"source": address}}


def azure_module(deployment: Deployment, place: azure.Place, allowed: Filter) -> JsonObject:
    """Page blob, image definition and version, security group with its rules."""
    deployment.image.require_platform(*azure.platforms_of(place.machine_type))
    name = resource_name(deployment)
    everything: JsonObject = {
        "protocol": "*",
        "source_address_prefix": "*",
        "source_port_range": "*",
        "destination_address_prefix": "*",
        "destination_port_range": "*",
        "access": "Deny",
        "priority": 4000,
    }
    rules: list[Json] = [
        {
            "name": "in",
            "direction": "Inbound",
            "access": "Allow",
            "priority": 100,
            "protocol": "Tcp",
            "source_address_prefixes": list(allowed.sources),
            "source_port_range": "*",
            "destination_address_prefix": "*",
            "destination_port_range": str(allowed.port),
        },
        {"name": "no-in", "direction": "Inbound", **everything},
        {"name": "no-out", "direction": "Outbound", **everything},
    ]
    rules += [
        {
            "name": f"out-{number}",
            "direction": "Outbound",
            "access": "Allow",
            "priority": 100 + number,
            "protocol": "Tcp",
            "source_address_prefix": "*",
            "source_port_range": "*",
            "destination_address_prefix": peer.range,
            "destination_port_range": str(peer.port),
        }
        for number, peer in enumerate(allowed.peers)
    ]
    where: JsonObject = {"location": place.location, "resource_group_name": place.group}
    resources: JsonObject = {
        "azurerm_storage_blob": {
            "disk": {
                "name": f"{image_name(deployment)}.vhd",
                "storage_account_name": place.storage_account,
                "storage_container_name": place.container,
                "type": "Page",
                "source": str(deployment.folder / "disk.vhd"),
            }
        },
        "azurerm_shared_image": {
            "image": {
                "name": name,
                "gallery_name": place.gallery,
                "os_type": "Linux",
                "hyper_v_generation": "V2",
                "architecture": "x64",
                "specialized": True,
                "confidential_vm_supported": True,
                "identifier": {"publisher": "cloister", "offer": "cloister", "sku": name},
                **where,
            }
        },
        "azurerm_shared_image_version": {
            "image": {
                "name": place.version,
                "gallery_name": place.gallery,
                "image_name": "${azurerm_shared_image.image.name}",
                "blob_uri": "${azurerm_storage_blob.disk.url}",
                "storage_account_id": "${data.azurerm_storage_account.disks.id}",
                "target_region": {"name": place.location, "regional_replica_count": 1},
                **where,
            }
        },
        "azurerm_network_security_group": {
            "worker": {"name": name, "security_rule": rules, **where}
        },
    }
    document = _module(
        "azurerm",
        {"features": {}, "storage_use_azuread": True},
        resources,
        {"image": {"value": "${azurerm_shared_image_version.image.id}"}},
    )
    account: JsonObject = {"name": place.storage_account, "resource_group_name": place.group}
    return {**document, "data": {"azurerm_storage_account": {"disks": account}}}


def write_module(module: JsonObject, folder: Path) -> Path:
    """Write a module into `folder` and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    path.write_text(json.dumps(module, indent=2) + "\n", encoding="utf-8")
    return path


def _security_rule(port: int, ranges: tuple[str, ...]) -> JsonObject:
    """A rule inside a group; this form wants every member to be there."""
    return {
        "description": "cloister",
        "protocol": "tcp",
        "from_port": port,
        "to_port": port,
        "cidr_blocks": [one for one in ranges if ":" not in one],
        "ipv6_cidr_blocks": [one for one in ranges if ":" in one],
        "prefix_list_ids": [],
        "security_groups": [],
        "self": False,
    }


def _module(
    provider: str, settings: JsonObject, resources: JsonObject, outputs: JsonObject
) -> JsonObject:
    source: JsonObject = {"source": f"hashicorp/{provider}", "version": _VERSIONS[provider]}
    return {
        "terraform": {"required_providers": {provider: source}},
        "provider": {provider: settings},
        "resource": resources,
        "output": outputs,
    }
