#!/bin/sh
# aws-nitro: web
# Never tried on AWS: there is no Nitro hypervisor here.
# Allocating takes memory and processors from the instance, for all of its enclaves.
set -eu
umask 077
mkdir -p /home/me/deployment

# Let AWS' own tool say what the image measures.
nitro-cli describe-eif --eif-path /home/me/image/image.eif
printf '%s ' 'Is it so that PCR0 is 3ca9b128b850e782f4b599412a8615e41494ca1d0c4d89c16aa0bac4cd1506d5b792f6c2caba08df73c4b0bfb76a7b99? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1
printf '%s ' 'Is it so that CheckCRC is true? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Write how much the enclave takes from the instance.
printf %s '---
memory_mib: 512
cpu_count: 2
' >/home/me/deployment/allocator.yaml

# Put that where the allocator reads it.
sudo install -m 0644 /home/me/deployment/allocator.yaml /etc/nitro_enclaves/allocator.yaml

# Set it aside.
sudo systemctl restart nitro-enclaves-allocator.service

# Start the enclave, without a console.
nitro-cli run-enclave --eif-path /home/me/image/image.eif --cpu-count 2 --memory 512 --enclave-cid 16 --enclave-name web

# Ask for the running enclave's mode and measurement.
nitro-cli describe-enclaves
printf '%s ' 'Is it so that web is RUNNING? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1
printf '%s ' 'Is it so that its Flags are NONE? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1
printf '%s ' 'Is it so that its PCR0 is 3ca9b128b850e782f4b599412a8615e41494ca1d0c4d89c16aa0bac4cd1506d5b792f6c2caba08df73c4b0bfb76a7b99? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Write a service that carries bytes between the instance's port and the enclave.
printf %s '[Unit]
Description=Carries bytes to the enclave web
After=network.target

[Service]
ExecStart=/usr/local/bin/cloister forward tcp://0.0.0.0:8440 vsock://16:8440
Restart=always
DynamicUser=yes
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
CapabilityBoundingSet=
RestrictAddressFamilies=AF_INET AF_INET6 AF_VSOCK AF_UNIX

[Install]
WantedBy=multi-user.target
' >/home/me/deployment/cloister-forward-web.service

# Put the service where systemd reads it.
sudo install -m 0644 /home/me/deployment/cloister-forward-web.service /etc/systemd/system/cloister-forward-web.service

# Tell systemd.
sudo systemctl daemon-reload

# Start it, now and after each boot.
sudo systemctl enable --now cloister-forward-web.service

# To undo it, in this order:
#   sudo systemctl disable --now cloister-forward-web.service
#   sudo rm -f /etc/systemd/system/cloister-forward-web.service
#   nitro-cli terminate-enclave --enclave-name web
