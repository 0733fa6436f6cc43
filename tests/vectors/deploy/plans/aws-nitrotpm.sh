#!/bin/sh
# aws-nitrotpm: web
# Never tried on AWS. Parameters were checked against the API's own model.
# A NitroTPM measures software; memory is AWS's word. Its document is AWS's signature.
# AWS documents PCR 4, 7 and 12 as predictable. What else the reference values list follows from the firmware profile; compare it once with an instance that you trust.
set -eu
umask 077
mkdir -p /home/me/deployment

# Make one disk out of the image's parts.
cloister deploy convert disk /home/me/image/esp.img /home/me/image/root.img /home/me/image/model.img --out /home/me/deployment/disk.raw

# Upload the disk.
aws --region us-east-2 s3 cp /home/me/deployment/disk.raw s3://my-images/cloister-web-83d0f2a1d1c6.raw --only-show-errors

# Write the parameters of the next call to import.json.
printf %s '{
  "Description": "cloister-web-83d0f2a1d1c6",
  "DiskContainer": {
    "Description": "cloister-web-83d0f2a1d1c6",
    "Format": "RAW",
    "UserBucket": {
      "S3Bucket": "my-images",
      "S3Key": "cloister-web-83d0f2a1d1c6.raw"
    }
  }
}
' >/home/me/deployment/import.json

# Begin to make a snapshot of the disk.
task=$(aws --region us-east-2 ec2 import-snapshot --cli-input-json file:///home/me/deployment/import.json --query ImportTaskId --output text)
printf %s "$task" | tr '\n' ' ' | grep -Eqx 'import-snap-[0-9a-f]{8,17}'

# Wait for the snapshot; this takes minutes.
tries=1
until aws --region us-east-2 ec2 wait snapshot-imported --import-task-ids "$task"; do [ $tries -lt 12 ] || exit 1; tries=$((tries + 1)); sleep 15; done

# Ask which snapshot it became.
snapshot=$(aws --region us-east-2 ec2 describe-import-snapshot-tasks --import-task-ids "$task" --query 'ImportSnapshotTasks[0].SnapshotTaskDetail.SnapshotId' --output text)
printf %s "$snapshot" | tr '\n' ' ' | grep -Eqx 'snap-[0-9a-f]{8,17}'

# Upload the start disk.
aws --region us-east-2 s3 cp /home/me/start.img s3://my-images/cloister-web-start-f0475f08c641.raw --only-show-errors

# Write the parameters of the next call to start-import.json.
printf %s '{
  "Description": "cloister-web-start-f0475f08c641",
  "DiskContainer": {
    "Description": "cloister-web-start-f0475f08c641",
    "Format": "RAW",
    "UserBucket": {
      "S3Bucket": "my-images",
      "S3Key": "cloister-web-start-f0475f08c641.raw"
    }
  }
}
' >/home/me/deployment/start-import.json

# Begin to make a snapshot of the start disk.
start_task=$(aws --region us-east-2 ec2 import-snapshot --cli-input-json file:///home/me/deployment/start-import.json --query ImportTaskId --output text)
printf %s "$start_task" | tr '\n' ' ' | grep -Eqx 'import-snap-[0-9a-f]{8,17}'

# Wait for the snapshot; this takes minutes.
tries=1
until aws --region us-east-2 ec2 wait snapshot-imported --import-task-ids "$start_task"; do [ $tries -lt 12 ] || exit 1; tries=$((tries + 1)); sleep 15; done

# Ask which snapshot it became.
start_snapshot=$(aws --region us-east-2 ec2 describe-import-snapshot-tasks --import-task-ids "$start_task" --query 'ImportSnapshotTasks[0].SnapshotTaskDetail.SnapshotId' --output text)
printf %s "$start_snapshot" | tr '\n' ' ' | grep -Eqx 'snap-[0-9a-f]{8,17}'

# Write the parameters of the next call to image.json.
printf %s '{
  "Name": "cloister-web-83d0f2a1d1c6",
  "Architecture": "x86_64",
  "VirtualizationType": "hvm",
  "BootMode": "uefi",
  "EnaSupport": true,
  "ImdsSupport": "v2.0",
  "TpmSupport": "v2.0",
  "RootDeviceName": "/dev/xvda",
  "BlockDeviceMappings": [
    {
      "DeviceName": "/dev/xvda",
      "Ebs": {
        "SnapshotId": "'"$snapshot"'",
        "VolumeType": "gp3",
        "DeleteOnTermination": true
      }
    }
  ]
}
' >/home/me/deployment/image.json

# Register the image.
ami=$(aws --region us-east-2 ec2 register-image --cli-input-json file:///home/me/deployment/image.json --query ImageId --output text)
printf %s "$ami" | tr '\n' ' ' | grep -Eqx 'ami-[0-9a-f]{8,17}'

# Make a security group.
group=$(aws --region us-east-2 ec2 create-security-group --group-name cloister-web --description cloister-web --vpc-id vpc-0123abcd --query GroupId --output text)
printf %s "$group" | tr '\n' ' ' | grep -Eqx 'sg-[0-9a-f]{8,17}'

# Let nothing out: take away the rule that AWS begins with.
aws --region us-east-2 ec2 revoke-security-group-egress --group-id "$group" --protocol all --cidr 0.0.0.0/0

# Write the parameters of the next call to in.json.
printf %s '{
  "GroupId": "'"$group"'",
  "IpPermissions": [
    {
      "IpProtocol": "tcp",
      "FromPort": 8440,
      "ToPort": 8440,
      "IpRanges": [
        {
          "CidrIp": "203.0.113.0/24"
        }
      ],
      "Ipv6Ranges": [
        {
          "CidrIpv6": "2001:db8::/32"
        }
      ]
    }
  ]
}
' >/home/me/deployment/in.json

# Let in who was named, on the worker's port.
aws --region us-east-2 ec2 authorize-security-group-ingress --cli-input-json file:///home/me/deployment/in.json --query Return --output text

# Write the parameters of the next call to out.json.
printf %s '{
  "GroupId": "'"$group"'",
  "IpPermissions": [
    {
      "IpProtocol": "tcp",
      "FromPort": 8441,
      "ToPort": 8441,
      "IpRanges": [
        {
          "CidrIp": "198.51.100.7/32"
        }
      ]
    }
  ]
}
' >/home/me/deployment/out.json

# Let out what was named.
aws --region us-east-2 ec2 authorize-security-group-egress --cli-input-json file:///home/me/deployment/out.json --query Return --output text

# Write the parameters of the next call to instance.json.
printf %s '{
  "ImageId": "'"$ami"'",
  "InstanceType": "m6a.large",
  "MinCount": 1,
  "MaxCount": 1,
  "SubnetId": "subnet-0123abcd",
  "SecurityGroupIds": [
    "'"$group"'"
  ],
  "BlockDeviceMappings": [
    {
      "DeviceName": "/dev/sdf",
      "Ebs": {
        "SnapshotId": "'"$start_snapshot"'",
        "VolumeType": "gp3",
        "DeleteOnTermination": true
      }
    }
  ],
  "MetadataOptions": {
    "HttpEndpoint": "disabled",
    "HttpTokens": "required"
  },
  "InstanceInitiatedShutdownBehavior": "terminate",
  "TagSpecifications": [
    {
      "ResourceType": "instance",
      "Tags": [
        {
          "Key": "Name",
          "Value": "cloister-web"
        }
      ]
    }
  ],
  "PrivateIpAddress": "10.0.2.15"
}
' >/home/me/deployment/instance.json

# Start the instance.
instance=$(aws --region us-east-2 ec2 run-instances --cli-input-json file:///home/me/deployment/instance.json --query 'Instances[0].InstanceId' --output text)
printf %s "$instance" | tr '\n' ' ' | grep -Eqx 'i-[0-9a-f]{8,17}'

# Wait until it runs.
tries=1
until aws --region us-east-2 ec2 wait instance-running --instance-ids "$instance"; do [ $tries -lt 2 ] || exit 1; tries=$((tries + 1)); sleep 15; done

# Ask AWS whether it is protected as it was asked for.
aws --region us-east-2 ec2 describe-instances --instance-ids "$instance" --query 'Reservations[0].Instances[0].{found: TpmSupport}' --output json
printf '%s ' 'Is it so that TpmSupport is v2.0? yes or no:'
read -r answer && [ "$answer" = yes ] || exit 1

# Ask for its address.
address=$(aws --region us-east-2 ec2 describe-instances --instance-ids "$instance" --query 'Reservations[0].Instances[0].PublicIpAddress || Reservations[0].Instances[0].PrivateIpAddress' --output text)
printf %s "$address" | tr '\n' ' ' | grep -Eqx '[0-9]{1,3}(\.[0-9]{1,3}){3}'

# To undo it, in this order:
#   aws --region us-east-2 ec2 terminate-instances --instance-ids "$instance"
#   aws --region us-east-2 ec2 delete-security-group --group-id "$group"
#   aws --region us-east-2 ec2 deregister-image --image-id "$ami"
#   aws --region us-east-2 ec2 delete-snapshot --snapshot-id "$start_snapshot"
#   aws --region us-east-2 s3 rm s3://my-images/cloister-web-start-f0475f08c641.raw --only-show-errors
#   aws --region us-east-2 ec2 delete-snapshot --snapshot-id "$snapshot"
#   aws --region us-east-2 s3 rm s3://my-images/cloister-web-83d0f2a1d1c6.raw --only-show-errors
