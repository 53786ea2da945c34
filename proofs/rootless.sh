#!/usr/bin/env bash
# A user without any right runs the daemon, and does what the tutorials do: `holm ssh`, and the AWS CLI's example.
#
#   proofs/rootless.sh HOLM DISK      as root; DISK is a Debian disk with ssh and cloud-init (cargo xtask image debian-disk)
#
# Makes a user, and removes it at the end with all that it has.
set -euo pipefail
holm=$(realpath "$1") disk=$(realpath "$2")
user=holm-proof
userdel -r "$user" 2>/dev/null || true
useradd --create-home --shell /bin/bash "$user"
home=$(getent passwd "$user" | cut -d: -f6)
remove() { pkill -KILL -u "$user" || true; sleep 1; userdel -r "$user" 2>/dev/null || true; }
trap remove EXIT
install -D -o "$user" -m 755 "$holm" "$home/.local/bin/holm"
install -o "$user" -m 644 "$disk" "$home/disk.img"
chown -R "$user:$user" "$home"

cat >"$home/proof.sh" <<'PROOF'
set -euo pipefail
export PATH=$HOME/.local/bin:$HOME/clients/bin:/usr/bin:/bin
step() { echo "== $(date +%T) $*"; }
fail() { echo "FAILED: $*"; tail -n 20 "$HOME/daemon.log"; exit 1; }
step "who: $(id), open files $(ulimit -n), locked memory $(ulimit -l)"
step doctor; holm doctor || true
/usr/bin/python3 -m venv "$HOME/clients" && pip -q install --disable-pip-version-check awscli==1.46.2
step "the daemon"
holm daemon 2>"$HOME/daemon.log" &
daemon=$!
for _ in $(seq 100); do holm key ls >/dev/null 2>&1 && break; sleep 0.2; done
holm key ls >/dev/null || fail "no daemon answers"
step "the image"; holm image import "$HOME/disk.img" debian --label login=debian; rm "$HOME/disk.img"
step "holm create, holm ssh"
holm key create mine
for _ in $(seq 50); do holm create debian --name web1 --type t3.small --key mine --timeout 300 && break; sleep 1; done
holm ls
holm ssh web1 -- 'id -un; hostname; curl -sI --max-time 5 http://169.254.169.254/ | head -n 1' || fail "holm ssh"
step "the AWS CLI"
eval "$(holm env)"
export AWS_PAGER=
image=$(aws ec2 describe-images --owners self --query 'Images[0].ImageId' --output text)
aws ec2 create-key-pair --key-name my-key-pair --query KeyMaterial --output text >my-key-pair.pem
chmod 600 my-key-pair.pem
subnet=$(aws ec2 describe-subnets --query 'Subnets[0].SubnetId' --output text)
group=$(aws ec2 create-security-group --group-name ssh --description ssh --query GroupId --output text)
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr 0.0.0.0/0 >/dev/null
began=$(date +%s.%N)
id=$(aws ec2 run-instances --image-id "$image" --instance-type t3.micro --key-name my-key-pair \
	--security-group-ids "$group" --subnet-id "$subnet" --query 'Instances[0].InstanceId' --output text)
aws ec2 wait instance-running --instance-ids "$id"
address=$(aws ec2 describe-instances --instance-ids "$id" --query 'Reservations[0].Instances[0].PublicIpAddress' --output text)
step "ssh to $address, as an unmodified ssh does with Holm's own configuration"
holm env --ssh-config >config
for _ in $(seq 60); do
	if ssh -F config -i my-key-pair.pem -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
		"debian@$address" 'echo ssh works as $(id -un)'; then break; fi
	sleep 2
done 2>ssh.log | grep . || { cat ssh.log; fail "ssh to $address"; }
step "$(echo "$(date +%s.%N) - $began" | bc 2>/dev/null || true) s from run-instances to ssh; ports: $(ss -ltnp 2>/dev/null | grep -c holm || true)"
ssh -i my-key-pair.pem -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p 22 "debian@$address" true 2>&1 |
	tail -n 1 || true
ssh -i my-key-pair.pem -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -p 10022 "debian@$address" \
	'echo port 10022 works' 2>/dev/null || echo "port 10022 does not"
holm events | grep -v instance-asked | tail -n 5 || true
step "the daemon is replaced, and machines go on"
kill -KILL $daemon; wait $daemon || true
holm daemon 2>>"$HOME/daemon.log" &
daemon=$!
for _ in $(seq 100); do holm key ls >/dev/null 2>&1 && break; sleep 0.2; done
holm ssh web1 -- uptime || fail "holm ssh after a restart"
step "the end"
aws ec2 terminate-instances --instance-ids "$id" >/dev/null
aws ec2 wait instance-terminated --instance-ids "$id"
holm rm web1
for _ in $(seq 100); do [ -z "$(ls "$HOME/.local/state/holm/machines")" ] && break; sleep 0.3; done
[ -z "$(ls "$HOME/.local/state/holm/machines")" ] || fail "machines are left"
kill -TERM $daemon; wait $daemon
# One that has ended waits for the host's init, which may take its time.
left=$(ps -u "$(id -u)" -o pid=,stat=,comm= | awk '$3 == "holm" && $2 !~ /^Z/ { print $1 }')
[ -z "$left" ] || { ps -o pid,ppid,stat,lstart,args -p $left; fail "processes are left"; }
grep -E 'WARN|ERROR' "$HOME/daemon.log" | sed 's/^/log: /' || true
step "PASSED"
PROOF
chown "$user:$user" "$home/proof.sh"
cd "$home"
exec 3>&1
setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
	env -i HOME="$home" USER="$user" LANG=C.UTF-8 bash "$home/proof.sh"
