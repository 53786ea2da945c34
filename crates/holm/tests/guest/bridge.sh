#!/bin/sh
# Run in a network and a mount namespace of its own, with the path of holm: a guest on a
# bridge, on a tap made for it, and killed.
set -eu
holm=$1
fail() { echo "FAILED: $*"; exit 1; }
b64() { printf '%s' "$1" | base64 -w0; }
taps() { ip -o link show | grep -c ': holm' || true; }
state() { ip -o link show br7 | sed 's/^[0-9]*: //; s/ state .* mode/ mode/'; }

mount -t sysfs sys /sys
ip link set lo up
ip link add br7 type bridge
ip link set br7 mtu 1400
ip addr add 10.77.0.1/24 dev br7
ip link set br7 up
mac=$(cat /sys/class/net/br7/address)

guest='set -e
ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0
cat /sys/class/net/eth0/mtu
ping -c 2 10.77.0.1 | grep "2 packets received"
until nc 10.77.0.1 5000 > /tmp/x; do usleep 100000; done
md5sum < /tmp/x
nc 10.77.0.1 5001 < /tmp/x'
head -c 4000000 /dev/urandom > data
busybox nc -l -p 5000 < data > /dev/null &
# With an input that never ends: the guest's nc would end with it.
mkfifo open
exec 3<> open
busybox nc -l -p 5001 <&3 > back &
listener=$!
"$holm" run tiny --net bridge=br7 --append "quiet cmd=$(b64 "$guest")" > out 2>&1 || fail "$(cat out)"
wait $listener
grep -q 'HOLM-EXIT 0' out || fail "$(cat out)"
grep -q '^1400' out || fail "the MTU of the bridge: $(cat out)"
grep -q "$(md5sum < data)" out || fail "what the guest received: $(cat out)"
cmp data back || fail "what the guest sent"
[ "$(taps)" = 0 ] || fail "a tap is left: $(ip -o link show)"
[ "$(cat /sys/class/net/br7/address)" = "$mac" ] || fail "the bridge's address changed"
[ "$(cat /sys/class/net/br7/mtu)" = 1400 ] || fail "the bridge's MTU changed"

# Killed: the tap goes with the process.
"$holm" run tiny --net bridge=br7 --serial null > /dev/null 2>&1 < /dev/null &
killed=$!
tries=0
until [ "$(taps)" = 1 ]; do tries=$((tries + 1)); [ $tries -lt 300 ] || fail "no tap"; sleep 0.1; done
ls /sys/class/net/br7/brif | grep -q holm || fail "the tap is no port of the bridge"
kill -9 $killed
wait $killed || true
tries=0
until [ "$(taps)" = 0 ]; do tries=$((tries + 1)); [ $tries -lt 100 ] || fail "a tap outlives its owner"; sleep 0.1; done

# A tap that exists, with several queues.
ip tuntap add dev t7 mode tap multi_queue
ip addr add 10.78.0.1/24 dev t7
guest='set -e
ip link set eth0 up; ip addr add 10.78.0.2/24 dev eth0
ls -d /sys/class/net/eth0/queues/rx-1
ping -c 3 10.78.0.1 | grep "3 packets received"'
"$holm" run tiny --cpus 2 --net tap=t7,queues=2 --append "quiet cmd=$(b64 "$guest")" > out 2>&1 || fail "$(cat out)"
grep -q 'HOLM-EXIT 0' out || fail "$(cat out)"
ip -o link show t7 | grep -q 'state DOWN' || fail "the tap was down before: $(ip -o link show t7)"
ip tuntap add dev t8 mode tap
if "$holm" run tiny --net tap=t8,queues=2 > out 2>&1; then fail "two queues on a tap with one"; fi
grep -q 'one queue' out || fail "$(cat out)"
echo ALL-WELL
