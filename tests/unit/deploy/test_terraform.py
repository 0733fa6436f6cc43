"""Terraform modules: what they hold, and that Terraform reads them where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cloister.deploy import aws_machine, google
from cloister.deploy.terraform import aws_module, azure_module, google_module, write_module
from cloister.strictjson import JsonObject
from support.cloud_plans import AWS_PLACE, AZURE_PLACE, GOOGLE_PLACE, PLATFORMS, allowed
from support.deployments import built_for, deployment


def modules(folder: Path) -> dict[str, JsonObject]:
    made = deployment(folder)
    passing = allowed(made)
    return {
        **{
            target: aws_module(
                built_for(made, PLATFORMS[target]),
                AWS_PLACE,
                passing,
                aws_machine.Protection(target.removeprefix("aws-")),
            )
            for target in ("aws-snp", "aws-nitrotpm")
        },
        **{
            target: google_module(
                built_for(made, PLATFORMS[target]),
                GOOGLE_PLACE,
                passing,
                google.Kind(target.removeprefix("google-")),
            )
            for target in ("google-snp", "google-tdx", "google-vtpm")
        },
        "azure": azure_module(built_for(made, PLATFORMS["azure"]), AZURE_PLACE, passing),
    }


def names(resources: object) -> set[str]:
    assert isinstance(resources, dict)
    return {f"{kind}.{name}" for kind, ones in resources.items() for name in ones}


def test_references_lead_to_resources_of_the_module(tmp_path: Path) -> None:
    for module in modules(tmp_path).values():
        named = names(module["resource"])
        named |= {f"data.{name}" for name in names(module.get("data", {}))}
        text = json.dumps(module)
        used = set(re.findall(r"\$\{(?:coalesce\()?((?:data\.)?\w+\.\w+)\.", text))
        assert used
        assert used <= named
        assert "password" not in text
        assert "%{" not in text


def test_what_protects_is_switched_on(tmp_path: Path) -> None:
    found = modules(tmp_path)
    snp = json.dumps(found["aws-snp"])
    assert '"cpu_options": {"amd_sev_snp": "enabled"}' in snp
    assert '"tpm_support": "v2.0"' in snp
    assert "cpu_options" not in json.dumps(found["aws-nitrotpm"])
    for target, word in (("google-snp", "SEV_SNP"), ("google-tdx", "TDX")):
        text = json.dumps(found[target])
        assert f'"confidential_instance_type": "{word}"' in text
        assert f'"type": "{word}_CAPABLE"' in text
        assert "service_account" not in text
    # A TPM alone: nothing is asked for that such a machine does not have.
    shielded = json.dumps(found["google-vtpm"])
    assert "confidential" not in shielded
    assert "_CAPABLE" not in shielded
    assert "on_host_maintenance" not in shielded
    for target in ("google-snp", "google-tdx", "google-vtpm"):
        text = json.dumps(found[target])
        assert '"enable_vtpm": true, "enable_integrity_monitoring": true' in text
        assert '"enable_secure_boot": false' in text
        assert '{"type": "UEFI_COMPATIBLE"}' in text
    azure = json.dumps(found["azure"])
    assert '"confidential_vm_supported": true' in azure
    assert '"storage_use_azuread": true' in azure


@pytest.mark.skipif(shutil.which("terraform") is None, reason="needs terraform")
def test_terraform_reads_every_module(tmp_path: Path) -> None:
    """`terraform providers` reads a configuration whole and needs no network; `validate` does."""
    environment = {**os.environ, "TF_CLI_CONFIG_FILE": "/dev/null", "CHECKPOINT_DISABLE": "1"}
    for target, module in modules(tmp_path).items():
        folder = tmp_path / target
        write_module(module, folder)
        done = subprocess.run(
            ["terraform", f"-chdir={folder}", "providers", "-no-color"],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        assert "provider[registry.terraform.io/hashicorp/" in done.stdout
