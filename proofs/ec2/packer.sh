#!/usr/bin/env bash
# Packer's amazon-ebs builder makes an image, and a machine starts from it.
#
#   PATH=CLIENTS/bin:$PATH proofs/ec2/packer.sh HOLM DISK
#
# CLIENTS is what `cargo xtask venv` makes; DISK is a Debian disk with ssh and cloud-init (cargo xtask image debian-disk);
# packer is Debian's.
set -euo pipefail
holm=$(realpath "$1") disk=$(realpath "$2") here=$(realpath "$(dirname "$0")")
work=$(mktemp -d)
export HOLM_STATE=$work/state AWS_PAGER=
"$holm" daemon --ec2 127.0.0.1:0 2>"$work/daemon.log" &
daemon=$!
end() {
	"$holm" ls -o json | grep -o '"i-[0-9a-f]*"' | tr -d '"' | sort -u | xargs -r "$holm" rm >/dev/null 2>&1 || true
	sleep 3
	kill $daemon && wait $daemon || true
	rm -rf "$work"
}
trap end EXIT
for _ in $(seq 100); do [ -e "$HOLM_STATE/run/ec2" ] && break; sleep 0.1; done
"$holm" image import "$disk" debian --label login=debian
eval "$("$holm" env)"
ami() { aws ec2 describe-images --owners self --query "Images[?$1].ImageId | [0]" --output text; }
until from=$(ami 'Name!=`null`') && [ "$from" != None ]; do sleep 0.2; done
began=$(date +%s)
packer build -var image="$from" "$here/packer.json"
made=$(ami "ImageId!='$from'")
echo "== Packer made $made in $(($(date +%s) - began)) s"
aws ec2 create-key-pair --key-name proof --query KeyMaterial --output text >"$work/key"
chmod 600 "$work/key"
group=$(aws ec2 create-security-group --group-name proof --description ssh --query GroupId --output text)
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr 0.0.0.0/0 >/dev/null
id=$(aws ec2 run-instances --image-id "$made" --instance-type t3.micro --key-name proof --security-group-ids "$group" \
	--query 'Instances[0].InstanceId' --output text)
aws ec2 wait instance-running --instance-ids "$id"
"$holm" env --ssh-config >"$work/config"
address=$(aws ec2 describe-instances --instance-ids "$id" --query 'Reservations[0].Instances[0].PublicIpAddress' --output text)
for _ in $(seq 60); do
	if said=$(ssh -F "$work/config" -i "$work/key" -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
		-o LogLevel=ERROR "debian@$address" 'cat /etc/packed; cat /etc/machine-id | wc -c'); then
		echo "== the machine from it says: $said"
		exit 0
	fi
	sleep 1
done
echo "== no ssh to $address"
exit 1
