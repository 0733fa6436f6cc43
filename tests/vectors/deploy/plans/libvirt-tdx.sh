#!/bin/sh
# libvirt-tdx: web
# Never tried on a TDX host: there was none. The words are QEMU's documented ones.
# Quotes come from Intel's quote generation service on the host; without it the guest's report cannot be made, and the worker does not start.
# MRCONFIGID is the host's word; the image's init compares it with the manifest that it reads.
set -eu
umask 077
mkdir -p /home/me/deployment

# Write the domain.
printf %s '<domain type="kvm">
  <name>web</name>
  <memory unit="MiB">8192</memory>
  <vcpu placement="static">4</vcpu>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <loader readonly="yes" type="rom">/usr/share/ovmf/OVMF.fd</loader>
  </os>
  <features>
    <acpi />
    <apic />
    <smm state="off" />
    <ioapic driver="qemu" />
  </features>
  <cpu mode="host-passthrough" check="none" />
  <clock offset="utc">
    <timer name="hpet" present="no" />
  </clock>
  <devices>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/image/esp.img" />
      <target dev="vda" bus="virtio" />
      <readonly />
      <serial>esp</serial>
      <boot order="1" />
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/image/root.img" />
      <target dev="vdb" bus="virtio" />
      <readonly />
      <serial>root</serial>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/image/model.img" />
      <target dev="vdc" bus="virtio" />
      <readonly />
      <serial>model</serial>
    </disk>
    <disk type="file" device="disk">
      <driver name="qemu" type="raw" iommu="on" />
      <source file="/home/me/start.img" />
      <target dev="vdd" bus="virtio" />
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
  <launchSecurity type="tdx">
    <policy>0x10000000</policy>
    <mrConfigId>AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAAAAAAAAAAAAAAAAAAAA</mrConfigId>
    <quoteGenerationService path="/run/qgs.socket" />
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
