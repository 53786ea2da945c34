#!/bin/sh
# Run in a network and a mount namespace of its own, with the path of holm: a guest on a user network traces the
# route to a machine behind a router of the host.
set -eu
holm=$1
fail() { echo "FAILED: $*"; exit 1; }
b64() { printf '%s' "$1" | base64 -w0; }

ip link set lo up
unshare -n sleep 600 &
router=$!
unshare -n sleep 600 &
far=$!
trap 'kill $router $far' EXIT
in_ns() { nsenter -t "$1" -n sh -ec "$2"; }
own=$(readlink /proc/self/ns/net)
for process in $router $far; do
    until [ "$(readlink /proc/$process/ns/net)" != "$own" ]; do sleep 0.05; done
done
ip link add toward type veth peer name near netns $router
ip addr add 10.99.1.1/24 dev toward
ip link set toward up
ip route add 10.99.2.0/24 via 10.99.1.2
in_ns $router "ip link set lo up; ip addr add 10.99.1.2/24 dev near; ip link set near up
    ip link add away type veth peer name end netns $far; ip addr add 10.99.2.1/24 dev away; ip link set away up
    echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/icmp_ratelimit"
in_ns $far "ip link set lo up; ip addr add 10.99.2.2/24 dev end; ip link set end up; ip route add default via 10.99.2.1
    echo 0 > /proc/sys/net/ipv4/icmp_ratelimit"
busybox ping -c 1 10.99.2.2 > /dev/null || fail "the host itself does not reach the other machine"

guest='set -e
ip link set eth0 up; ip addr add 10.0.2.15/24 dev eth0; ip route add default via 10.0.2.2
traceroute -n -q 1 -w 5 -m 3 10.99.2.2 | sed "s/^/udp/"
traceroute -I -n -q 1 -w 5 -m 3 10.99.2.2 | sed "s/^/echo/"'
"$holm" run tiny --append "quiet cmd=$(b64 "$guest")" > out 2>&1 || fail "$(cat out)"
grep -q 'HOLM-EXIT 0' out || fail "$(cat out)"
for line in '^udp *1  10\.0\.2\.2 ' '^udp *2  10\.99\.1\.2 ' '^udp *3  10\.99\.2\.2 ' \
    '^echo *1  10\.0\.2\.2 ' '^echo *2  10\.99\.1\.2 ' '^echo *3  10\.99\.2\.2 '; do
    grep -q "$line" out || fail "no line $line: $(cat out)"
done
echo ALL-WELL
