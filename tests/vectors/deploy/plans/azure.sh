#!/bin/sh
# azure: web
# Never tried on Azure. Flags were checked against Azure CLI 2.91.0.
# That a specialized image starts as a confidential VM is Microsoft's documentation's word.
# The guest asks Azure's metadata service, which no security group reaches; the image's own rules name it.
# The paravisor between hardware and guest is Azure's; evidence names it, and it is trusted.
set -eu
umask 077
mkdir -p /home/me/deployment

# Make one disk out of the image's parts.
cloister deploy convert disk /home/me/image/esp.img /home/me/image/root.img /home/me/image/model.img --out /home/me/deployment/disk.raw

# Make it a fixed VHD.
cloister deploy convert vhd /home/me/deployment/disk.raw --out /home/me/deployment/disk.vhd

# Upload it as a page blob.
az storage blob upload --account-name myimages --container-name disks --name cloister-web-83d0f2a1d1c6.vhd --auth-mode login --file /home/me/deployment/disk.vhd --type page --overwrite true --no-progress --output none --only-show-errors

# Say in the gallery what kind of image it is.
az sig image-definition create --resource-group cloister --gallery-name images --gallery-image-definition cloister-web --location northeurope --publisher cloister --offer cloister --sku cloister-web --os-type Linux --os-state Specialized --hyper-v-generation V2 --architecture x64 --features SecurityType=ConfidentialVmSupported --output none --only-show-errors

# Make a version of it from the blob; this takes minutes.
image=$(az sig image-version create --resource-group cloister --gallery-name images --gallery-image-definition cloister-web --gallery-image-version 1.0.0 --location northeurope --os-vhd-uri https://myimages.blob.core.windows.net/disks/cloister-web-83d0f2a1d1c6.vhd --os-vhd-storage-account myimages --query id --output tsv --only-show-errors)
printf %s "$image" | tr '\n' ' ' | grep -Eqx '/subscriptions/[0-9a-f-]{36}/resourceGroups/[A-Za-z0-9_.-]+/providers/Microsoft.Compute/galleries/[A-Za-z0-9_.-]+/images/[A-Za-z0-9_.-]+/versions/[0-9.]+'

# Make the start disk a fixed VHD.
cloister deploy convert vhd /home/me/start.img --out /home/me/deployment/start.vhd

# Upload the start disk as a page blob.
az storage blob upload --account-name myimages --container-name disks --name cloister-web-start-f0475f08c641.vhd --auth-mode login --file /home/me/deployment/start.vhd --type page --overwrite true --no-progress --output none --only-show-errors

# Make a disk of it.
az disk create --resource-group cloister --name cloister-web-start-f0475f08c641 --location northeurope --source https://myimages.blob.core.windows.net/disks/cloister-web-start-f0475f08c641.vhd --sku StandardSSD_LRS --network-access-policy DenyAll --output none --only-show-errors

# Make a network security group.
az network nsg create --resource-group cloister --name cloister-web --location northeurope --output none --only-show-errors

# Let in who was named, on the worker's port.
az network nsg rule create --resource-group cloister --nsg-name cloister-web --name in --priority 100 --direction Inbound --access Allow --protocol Tcp --destination-port-ranges 8440 --source-address-prefixes 203.0.113.0/24 2001:db8::/32 --output none --only-show-errors

# Let nobody else in, neighbours of the network included.
az network nsg rule create --resource-group cloister --nsg-name cloister-web --name no-in --priority 4000 --direction Inbound --access Deny --protocol '*' --source-address-prefixes '*' --source-port-ranges '*' --destination-address-prefixes '*' --destination-port-ranges '*' --output none --only-show-errors

# Let out what was named.
az network nsg rule create --resource-group cloister --nsg-name cloister-web --name out-0 --priority 100 --direction Outbound --access Allow --protocol Tcp --destination-address-prefixes 198.51.100.7/32 --destination-port-ranges 8441 --output none --only-show-errors

# Let nothing else out.
az network nsg rule create --resource-group cloister --nsg-name cloister-web --name no-out --priority 4000 --direction Outbound --access Deny --protocol '*' --source-address-prefixes '*' --source-port-ranges '*' --destination-address-prefixes '*' --destination-port-ranges '*' --output none --only-show-errors

# Start the machine.
az vm create --resource-group cloister --name cloister-web --location northeurope --image "$image" --specialized true --size Standard_DC4as_v5 --security-type ConfidentialVM --os-disk-security-encryption-type VMGuestStateOnly --enable-vtpm true --enable-secure-boot false --vnet-name net --subnet default --nsg cloister-web --private-ip-address 10.0.2.15 --public-ip-address '' --attach-data-disks cloister-web-start-f0475f08c641 --nic-delete-option Delete --os-disk-delete-option Delete --output none --only-show-errors

# Ask Azure whether it is protected as it was asked for.
az vm show --resource-group cloister --name cloister-web --query securityProfile --output json --only-show-errors
printf '%s ' 'Is it so that its securityType is ConfidentialVM? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1
printf '%s ' 'Is it so that it has a virtual TPM? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Ask for its address.
address=$(az vm show --resource-group cloister --name cloister-web --show-details --query privateIps --output tsv --only-show-errors)
printf %s "$address" | tr '\n' ' ' | grep -Eqx '[0-9]{1,3}(\.[0-9]{1,3}){3}'

# To undo it, in this order:
#   az vm delete --resource-group cloister --name cloister-web --yes --only-show-errors
#   az network nsg delete --resource-group cloister --name cloister-web --only-show-errors
#   az disk delete --resource-group cloister --name cloister-web-start-f0475f08c641 --yes --only-show-errors
#   az storage blob delete --account-name myimages --container-name disks --name cloister-web-start-f0475f08c641.vhd --auth-mode login --output none --only-show-errors
#   az sig image-version delete --resource-group cloister --gallery-name images --gallery-image-definition cloister-web --gallery-image-version 1.0.0 --only-show-errors
#   az sig image-definition delete --resource-group cloister --gallery-name images --gallery-image-definition cloister-web --only-show-errors
#   az storage blob delete --account-name myimages --container-name disks --name cloister-web-83d0f2a1d1c6.vhd --auth-mode login --output none --only-show-errors
