#!/bin/sh
# qemu-snp: web
# Never tried on an SEV-SNP host: there was none. The words are QEMU's documented ones.
# Firmware, number of processors and CPU model are part of the launch digest: predict with the same (`cloister image measure --snp-firmware FIRMWARE --vcpus N --vcpu-type CPU`).
# HOST_DATA is the host's word; the image's init compares it with the manifest that it reads.
set -eu
umask 077
mkdir -p /home/me/deployment

# See that the host's kvm_amd module has it switched on.
cat /sys/module/kvm_amd/parameters/sev_snp
printf '%s ' 'Is it so that /sys/module/kvm_amd/parameters/sev_snp says Y? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Take the kernel out of the UKI.
cloister deploy convert kernel /home/me/image/uki.efi --out /home/me/deployment/kernel

# Take the initrd out of the UKI.
cloister deploy convert initrd /home/me/image/uki.efi --out /home/me/deployment/initrd

# Switch the GPU 0000:41:00.0 to confidential mode, and reset it.
nvidia_gpu_tools.py --devices 0000:41:00.0 --set-cc-mode=on --reset-after-cc-mode-switch

# Ask the GPU 0000:41:00.0 for its mode.
nvidia_gpu_tools.py --devices 0000:41:00.0 --query-cc-mode
printf '%s ' 'Is it so that its CC mode is on? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# See that VFIO holds the GPU 0000:41:00.0.
readlink /sys/bus/pci/devices/0000:41:00.0/driver
printf '%s ' 'Is it so that its driver is vfio-pci? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Start the guest; its console goes to /home/me/deployment/console.log.
qemu-system-x86_64 -name web -nodefaults -no-user-config -display none -monitor none -no-reboot -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny -accel kvm -smp 4 -m 8192M -bios /usr/share/ovmf/OVMF.fd -serial file:/home/me/deployment/console.log -pidfile /home/me/deployment/qemu.pid -daemonize -device '{"driver":"virtio-rng-pci","disable-legacy":"on","iommu_platform":true}' -device '{"driver":"virtio-serial-pci","disable-legacy":"on","iommu_platform":true}' -chardev socket,id=operator,path=/home/me/deployment/operator.sock,server=on,wait=off -device '{"driver":"virtserialport","chardev":"operator","name":"cloister.operator"}' -machine q35,confidential-guest-support=cc0,memory-backend=ram0,vmport=off -cpu EPYC-v4 -object '{"qom-type":"memory-backend-memfd","id":"ram0","size":8589934592,"share":true,"prealloc":false,"reserve":false}' -object '{"qom-type":"sev-snp-guest","id":"cc0","cbitpos":51,"reduced-phys-bits":1,"policy":196608,"kernel-hashes":true,"host-data":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}' -kernel /home/me/deployment/kernel -initrd /home/me/deployment/initrd -append 'quiet cloister.root=a cloister.application=none cloister.model=b' -blockdev '{"node-name":"root","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/image/root.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"root","serial":"root","disable-legacy":"on","iommu_platform":true}' -blockdev '{"node-name":"model","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/image/model.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"model","serial":"model","disable-legacy":"on","iommu_platform":true}' -blockdev '{"node-name":"start","driver":"raw","read-only":true,"file":{"driver":"file","filename":"/home/me/start.img","locking":"auto"}}' -device '{"driver":"virtio-blk-pci","drive":"start","serial":"start","disable-legacy":"on","iommu_platform":true}' -netdev '{"type":"user","id":"net0","restrict":true,"ipv6":false,"hostfwd":[{"str":"tcp:127.0.0.1:8440-10.0.2.15:8440"}]}' -device '{"driver":"virtio-net-pci","netdev":"net0","romfile":"","disable-legacy":"on","iommu_platform":true}' -object '{"qom-type":"iommufd","id":"iommufd0"}' -device '{"driver":"pcie-root-port","id":"gpu0","bus":"pcie.0","chassis":1}' -device '{"driver":"vfio-pci","host":"0000:41:00.0","bus":"gpu0","iommufd":"iommufd0"}' -fw_cfg name=opt/ovmf/X-PciMmio64Mb,string=262144

# To undo it, in this order:
#   pkill -F /home/me/deployment/qemu.pid
