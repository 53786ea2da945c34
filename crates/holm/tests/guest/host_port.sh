#!/bin/sh
# Run in a network namespace of its own, with the path of holm and the directory of the image
# `tiny`. A guest answers at ports of its address: the host reaches private addresses, and port 22 of the
# public one although its own sshd listens there; and nothing is left.
set -eu
holm=$1 tiny=$2
fail() { echo "FAILED: $*"; cat daemon.log; cat state/host-ports/*/* || true; exit 1; }
until_true() {
  what=$1; shift
  for _ in $(seq 600); do if "$@"; then return; fi; sleep 0.2; done
  fail "not in time: $what"
}
ports() { ip -o link show | grep -c ': holm-' || true; }
says() { [ "$(busybox nc -w 5 "$1" "$2" < /dev/null 2>/dev/null)" = "$3" ]; }
start() {
  "$holm" daemon --ec2 127.0.0.1:0 --grace 1s > daemon.log 2>&1 &
  daemon=$!
  until_true "the daemon answers" "$holm" quota ls > /dev/null 2>&1
}

# At port 24 the guest says whether it reaches the host by the host's own port.
guest='printf "#!/bin/sh\n[ \$1 = bound ] || exit 0\nip addr add \$ip/\$mask dev eth0\nip route add default via \$router\n" > /tmp/lease
printf "#!/bin/sh\nnc -w 2 172.31.0.3 22 < /dev/null | grep -q sshd && echo reached || echo shut\n" > /tmp/try
chmod +x /tmp/lease /tmp/try; ip link set lo up; ip link set eth0 up
udhcpc -q -f -i eth0 -s /tmp/lease
nc -ll -p 23 -e echo guest & nc -ll -p 24 -e /tmp/try &
nc -ll -p 22 -e echo guest'
PATH="$PATH:/usr/sbin:/sbin"
mkdir -p root/boot/grub
cp "$tiny/vmlinuz" "$tiny/initrd" root/boot
echo "menuentry Tiny { linux /boot/vmlinuz console=ttyS0 quiet cmd=$(printf '%s' "$guest" | base64 -w0)
 initrd /boot/initrd }" > root/boot/grub/grub.cfg
truncate -s 66M disk.img
printf 'label: gpt\nstart=1MiB, size=64MiB, type=L\n' | sfdisk -q disk.img
mke2fs -q -F -t ext4 -d root -E offset=1048576 disk.img 64M

export HOLM_STATE="$PWD/state"
ip link set lo up
busybox nc -ll -p 22 -e echo sshd-of-the-host > /dev/null 2>&1 &
sshd=$!
trap 'kill $sshd; "$holm" rm --force one > /dev/null 2>&1 || true; kill $daemon' EXIT
"$holm" image import disk.img lab > /dev/null
start
until_true "the image is offered" sh -c "$holm image ls | grep -q lab"
"$holm" sg allow default 22 24 > /dev/null
"$holm" type create lab.tiny --cpus 1 --memory 192M > /dev/null
until_true "the instance is made" sh -c "$holm create lab --name one --type lab.tiny --wait running > created 2>&1"
private=$("$holm" show one -o json | busybox sed -n 's/.*"private_ip": *"\([^"]*\)".*/\1/p' | head -1)
public=$("$holm" show one -o json | busybox sed -n 's/.*"public_ip": *"\([^"]*\)".*/\1/p' | head -1)
until_true "an interface" sh -c '[ -n "$(ip -o link show | grep ": holm-")" ]'
until_true "the guest at its private address" says "$private" 22 guest
says "$private" 23 guest && fail "a port that no rule opens"
says "$private" 24 shut || fail "the guest reaches the host"
until_true "the guest at port 22 of its public address" says "$public" 22 guest
says 127.0.0.1 22 sshd-of-the-host || fail "the host's own sshd"

# Without the daemon all goes on; the next one takes it up.
kill -9 $daemon
wait $daemon || true
interface=$(ip -o link show | grep ': holm-')
says "$private" 22 guest || fail "without the daemon: private"
says "$public" 22 guest || fail "without the daemon: public"
start
sleep 1
[ "$(ip -o link show | grep ': holm-')" = "$interface" ] || fail "the port was not taken up"
says "$private" 22 guest || fail "with the next daemon"

# The process that serves it is killed: there is a new one.
busybox kill -9 "$(busybox sed -n 's/.*"pid":\([0-9]*\).*/\1/p' state/host-ports/*/lock)"
until_true "a new port" says "$private" 22 guest

# Addresses that the host has elsewhere are left to it, and the owner is told.
vpc=$(basename state/host-ports/*)
"$holm" rm --force one > /dev/null
until_true "the interface goes" sh -c '[ -z "$(ip -o link show | grep ": holm-")" ]'
[ -z "$(nft list ruleset)" ] || fail "rules are left: $(nft list ruleset)"
[ -z "$(ls state/host-ports)" ] || fail "files are left: $(ls state/host-ports)"
ip link add elsewhere type bridge
ip addr add 172.31.7.1/24 dev elsewhere
ip link set elsewhere up
"$holm" create lab --name two --type lab.tiny --wait running > /dev/null
until_true "the conflict is told" sh -c "$holm events $vpc | grep -q 'network-not-reachable.*elsewhere'"
[ "$(ports)" = 0 ] || fail "an interface in spite of the conflict"
"$holm" rm --force two > /dev/null
until_true "the process goes" sh -c '[ -z "$(ls state/host-ports)" ]'
echo ALL-WELL
