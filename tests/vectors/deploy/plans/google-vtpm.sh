#!/bin/sh
# google-vtpm: web
# MEMORY IS NOT PROTECTED FROM GOOGLE on this machine: no confidential processor encrypts it, and prompts, answers and weights lie in it. The TPM measures what started, which is Google's word too. Clients refuse it unless their policy accepts memory_confidentiality = none.
# Never tried on Google Cloud. Flags and their values were checked against gcloud 528.0.0.
# The virtual TPM is Google's: that it belongs to this guest is Google's word.
# Where the TPM has no certificate of Google's for its key the guest ends, and says so (guest.no_certificate).
set -eu
umask 077
mkdir -p /home/me/deployment

# Make one disk out of the image's parts.
cloister deploy convert disk /home/me/image/esp.img /home/me/image/root.img /home/me/image/model.img --out /home/me/deployment/disk.raw

# Pack it as Google takes it.
cloister deploy convert google /home/me/deployment/disk.raw --out /home/me/deployment/disk.tar.gz

# Upload it.
gcloud storage cp /home/me/deployment/disk.tar.gz gs://my-images/cloister-web-83d0f2a1d1c6.tar.gz --project=my-project --quiet

# Make an image of it; this takes minutes.
gcloud compute images create cloister-web-83d0f2a1d1c6 --source-uri=gs://my-images/cloister-web-83d0f2a1d1c6.tar.gz --guest-os-features=UEFI_COMPATIBLE,GVNIC --architecture=X86_64 --project=my-project --quiet

# Pack the start disk as Google takes it.
cloister deploy convert google /home/me/start.img --out /home/me/deployment/start.tar.gz

# Upload the start disk.
gcloud storage cp /home/me/deployment/start.tar.gz gs://my-images/cloister-web-start-f0475f08c641.tar.gz --project=my-project --quiet

# Make an image of it.
gcloud compute images create cloister-web-start-f0475f08c641 --source-uri=gs://my-images/cloister-web-start-f0475f08c641.tar.gz --architecture=X86_64 --project=my-project --quiet

# Let in who was named, on the worker's port.
gcloud compute firewall-rules create cloister-web-in --network=default --target-tags=cloister-web --direction=INGRESS --action=ALLOW --priority=900 --rules=tcp:8440 --source-ranges=203.0.113.0/24,2001:db8::/32 --project=my-project --quiet

# Let nobody else in, whatever the network's other rules say.
gcloud compute firewall-rules create cloister-web-no-in --network=default --target-tags=cloister-web --direction=INGRESS --action=DENY --priority=901 --rules=all --source-ranges=0.0.0.0/0 --project=my-project --quiet

# Let out what was named.
gcloud compute firewall-rules create cloister-web-out-0 --network=default --target-tags=cloister-web --direction=EGRESS --action=ALLOW --priority=900 --rules=tcp:8441 --destination-ranges=198.51.100.7/32 --project=my-project --quiet

# Let nothing else out.
gcloud compute firewall-rules create cloister-web-no-out --network=default --target-tags=cloister-web --direction=EGRESS --action=DENY --priority=901 --rules=all --destination-ranges=0.0.0.0/0 --project=my-project --quiet

# Start the machine.
gcloud compute instances create cloister-web --zone=us-central1-a --machine-type=n2d-standard-4 --image=cloister-web-83d0f2a1d1c6 --image-project=my-project --create-disk=image=cloister-web-start-f0475f08c641,image-project=my-project,type=pd-balanced,size=10GB,boot=no,auto-delete=yes --network-interface=network=default,nic-type=GVNIC,subnet=default,private-network-ip=10.0.2.15,no-address --shielded-vtpm --shielded-integrity-monitoring --no-shielded-secure-boot --no-service-account --no-scopes --tags=cloister-web --project=my-project --quiet

# Ask Google whether it has a TPM. Nothing protects its memory from Google.
gcloud compute instances describe cloister-web --zone=us-central1-a '--format=value(shieldedInstanceConfig.enableVtpm)' --project=my-project --quiet
printf '%s ' 'Is it so that it says True? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Ask for its address.
address=$(gcloud compute instances describe cloister-web --zone=us-central1-a '--format=value(networkInterfaces[0].networkIP)' --project=my-project --quiet)
printf %s "$address" | tr '\n' ' ' | grep -Eqx '[0-9]{1,3}(\.[0-9]{1,3}){3}'

# To undo it, in this order:
#   gcloud compute instances delete cloister-web --zone=us-central1-a --project=my-project --quiet
#   gcloud compute firewall-rules delete cloister-web-no-out --project=my-project --quiet
#   gcloud compute firewall-rules delete cloister-web-out-0 --project=my-project --quiet
#   gcloud compute firewall-rules delete cloister-web-no-in --project=my-project --quiet
#   gcloud compute firewall-rules delete cloister-web-in --project=my-project --quiet
#   gcloud compute images delete cloister-web-start-f0475f08c641 --project=my-project --quiet
#   gcloud storage rm gs://my-images/cloister-web-start-f0475f08c641.tar.gz --project=my-project --quiet
#   gcloud compute images delete cloister-web-83d0f2a1d1c6 --project=my-project --quiet
#   gcloud storage rm gs://my-images/cloister-web-83d0f2a1d1c6.tar.gz --project=my-project --quiet
