#!/bin/sh
# qemu-tdx: web
# Never tried on a TDX host: there was none. The words are QEMU's documented ones.
# Quotes come from Intel's quote generation service on the host; without it the guest's report cannot be made, and the worker does not start.
# MRCONFIGID is the host's word; the image's init compares it with the manifest that it reads.
set -eu
umask 077
mkdir -p /home/me/deployment

# See that the host's kvm_intel module has it switched on.
cat /sys/module/kvm_intel/parameters/tdx
printf '%s ' 'Is it so that /sys/module/kvm_intel/parameters/tdx says Y? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Start the guest; its console goes to /home/me/deployment/console.log.
qemu-system-x86_64 -name web -nodefaults -no-user-config -display none -monitor none -no-reboot -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -accel kvm -smp 4 -m 8192M -bios /usr/share/ovmf/OVMF.fd -serial file:/home/me/deployment/console.log -pidfile /home/me/deployment/qemu.pid -daemonize -device '{"driver":"virtio-rng-pci","disable-legacy":"on","iommu_platform":true}' -device '{"driver":"virtio-serial-pci","disable-legacy":"on","iommu_platform":true}' -chardev socket,id=operator,path=/home/me/deployment/operator.sock,server=on,wait=off -device '{"driver":"virtserialport","chardev":"operator","name":"cloister.operator"}' -machine q35,kernel-irqchip=split,confidential-guest-support=cc0,memory-backend=ram0,hpet=off -cpu host -object '{"qom-type":"memory-backend-ram","id":"ram0","size":8589934592}' -object '{"qom-type":"tdx-guest","id":"cc0","sept-ve-disable":true,"quote-generation-socket":{"type":"unix","path":"/var/run/tdx-qgs/qgs.socket"},"mrconfigid":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8AAAAAAAAAAAAAAAAAAAAA"}' -blockdev '{"node-name":"esp","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/image/esp.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"esp","serial":"esp","disable-legacy":"on","iommu_platform":true,"bootindex":1}' -blockdev '{"node-name":"root","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/image/root.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"root","serial":"root","disable-legacy":"on","iommu_platform":true}' -blockdev '{"node-name":"model","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/image/model.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"model","serial":"model","disable-legacy":"on","iommu_platform":true}' -blockdev '{"node-name":"start","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/start.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"start","serial":"start","disable-legacy":"on","iommu_platform":true}' -netdev '{"type":"user","id":"net0","restrict":true,"ipv6":false,"hostfwd":[{"str":"tcp:127.0.0.1:8440-10.0.2.15:8440"}]}' -device '{"driver":"virtio-net-pci","netdev":"net0","romfile":"","disable-legacy":"on","iommu_platform":true}'

# To undo it, in this order:
#   pkill -F /home/me/deployment/qemu.pid
