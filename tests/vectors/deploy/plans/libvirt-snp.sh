#!/bin/sh
# libvirt-snp: web
# Never tried on an SEV-SNP host: there was none. The words are QEMU's documented ones.
# Firmware, number of processors and CPU model are part of the launch digest: predict with the same (`cloister image measure --snp-firmware FIRMWARE --vcpus N --vcpu-type CPU`).
# HOST_DATA is the host's word; the image's init compares it with the manifest that it reads.
set -eu
umask 077
mkdir -p /home/me/deployment

# Take the kernel out of the UKI.
cloister deploy convert kernel /home/me/image/uki.efi --out /home/me/deployment/kernel

# Take the initrd out of the UKI.
cloister deploy convert initrd /home/me/image/uki.efi --out /home/me/deployment/initrd

# Write the domain.
printf %s '<domain type="kvm">
  <name>web</name>
  <memory unit="MiB">8192</memory>
  <vcpu placement="static">4</vcpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <memoryBacking>
    <source type="memfd" />
    <access mode="shared" />
  </memoryBacking>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <loader readonly="yes" type="rom">/usr/share/ovmf/OVMF.fd</loader>
    <kernel>/home/me/deployment/kernel</kernel>
    <initrd>/home/me/deployment/initrd</initrd>
    <cmdline>quiet cloister.root=a cloister.application=none cloister.model=b</cmdline>
  </os>
  <features>
    <acpi />
    <apic />
    <vmport state="off" />
  </features>
  <cpu mode="custom" match="exact" check="none">
    <model fallback="forbid">EPYC-v4</model>
  </cpu>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/image/root.img" />
      <target dev="vda" bus="virtio" />
      <readonly />
      <serial>root</serial>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/image/model.img" />
      <target dev="vdb" bus="virtio" />
      <readonly />
      <serial>model</serial>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/start.img" />
      <target dev="vdc" bus="virtio" />
      <readonly />
      <serial>start</serial>
    </disk>
    <controller type="usb" model="none" />
    <channel type="unix">
      <source mode="bind" />
      <target type="virtio" name="cloister.operator" />
    </channel>
    <channel type="unix">
      <source mode="bind" />
      <target type="virtio" name="cloister.requests" />
    </channel>
    <channel type="unix">
      <source mode="bind" />
      <target type="virtio" name="cloister.broker" />
    </channel>
    <serial type="pty">
      <target port="0" />
    </serial>
    <rng model="virtio">
      <backend model="random">/dev/urandom</backend>
      <driver iommu="on" />
    </rng>
    <memballoon model="none" />
  </devices>
  <launchSecurity type="sev-snp" kernelHashes="yes">
    <cbitpos>51</cbitpos>
    <reducedPhysBits>1</reducedPhysBits>
    <policy>0x00030000</policy>
    <hostData>AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=</hostData>
  </launchSecurity>
</domain>
' >/home/me/deployment/domain.xml

# Define the domain, if it is as libvirt's schema wants it.
virsh --connect qemu:///system define --validate /home/me/deployment/domain.xml

# Start it.
virsh --connect qemu:///system start web

# To undo it, in this order:
#   virsh --connect qemu:///system destroy web
#   virsh --connect qemu:///system undefine web
