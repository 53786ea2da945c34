#!/usr/bin/env bash
# Whole Debians of several releases at once on this host: each with its own
# kernel and userland, on one switch and one user network, on the software CPU.
#
#   proofs/kernels.sh HOLM [SUITE...]        (bullseye bookworm trixie)
#
# Builds what images are missing (about a minute each), boots them all, and lets
# each verify its packages' files, compute, write and verify a disk, reach the
# others, lose and find its memory in a snapshot, and shut down cleanly.
set -euo pipefail
holm=$(realpath "$1"); shift
[ $# -gt 0 ] || set -- bullseye bookworm trixie
engine=${ENGINE:-soft} cpus=${CPUS:-2}
run=$(mktemp -d); export XDG_RUNTIME_DIR=$run
suites=("$@")
# By the array: in a function that fails, the parameters are the function's.
cleanup() {
  for suite in "${suites[@]}"; do "$holm" kill "k-$suite" > /dev/null 2>&1 || :; done
  rm -rf "$run"
}
trap cleanup EXIT

for suite; do
  "$holm" image show "kernels-$suite" > /dev/null 2>&1 && continue
  cat > "$run/$suite.toml" <<RECIPE
version = 1
name = "kernels-$suite"
base = "debian"
suite = "$suite"
size = "4G"
packages = ["fio", "iperf3"]
commands = ["passwd --quiet --delete root"]
RECIPE
  "$holm" image build "$run/$suite.toml"
done

begin=$SECONDS
n=0
for suite; do
  n=$((n + 1))
  truncate --size 256M "$run/$suite.img" "$run/$suite-more.img"
  "$holm" run "kernels-$suite" --name "k-$suite" --detach --engine "$engine" --cpus "$cpus" --memory 1G \
    --net user --net switch=kernels --disk "$run/$suite.img,serial=scratch"
done
in_guest() { local suite=$1; shift; "$holm" exec "k-$suite" -- sh -euc "$*"; }
for suite; do
  until in_guest "$suite" true 2> /dev/null; do
    [ $((SECONDS - begin)) -lt 300 ] || { echo "$suite does not come up" >&2; exit 1; }
    sleep 1
  done
done
echo "all up after $((SECONDS - begin)) s"

n=0
for suite; do
  n=$((n + 1))
  in_guest "$suite" "
    card=\$(ip -o link | awk -F': ' '/link\/ether/ {print \$2}' | tail -n 1)
    ip link set \$card up; ip addr add 10.9.0.$n/24 dev \$card"
done

# All of it at once.
work='
  . /etc/os-release
  # The image leaves out what nobody reads in a guest.
  changed=$(dpkg --verify | grep -vE " /usr/share/(doc|man|locale)(/|\$)| c /etc/| /var/lib/apt/lists/" || :)
  [ -z "$changed" ] || { echo "$changed"; exit 1; }
  python3 -c "import hashlib; print(hashlib.sha512(bytes(30_000_000)).hexdigest()[:16])"
  udevadm settle
  fio --name=verify --filename=/dev/disk/by-id/virtio-scratch --direct=1 --rw=randwrite --bsrange=4k-128k \
    --size=200m --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1 --norandommap > /tmp/fio 2>&1 \
    || { cat /tmp/fio; exit 1; }
  echo "$(uname -r), $PRETTY_NAME: $(dpkg -l | grep -c ^ii) packages are as they were built, disk verified"'
pids=()
for suite; do in_guest "$suite" "$work" > "$run/$suite.out" 2>&1 & pids+=($!); done
for suite; do
  wait "${pids[0]}" || { cat "$run/$suite.out"; echo "$suite failed" >&2; exit 1; }
  pids=("${pids[@]:1}")
  cat "$run/$suite.out"
done

# Each to the next.
for i in "${!suites[@]}"; do
  next=$(((i + 1) % ${#suites[@]}))
  in_guest "${suites[next]}" "iperf3 -s -1 -D"
  sleep 1
  in_guest "${suites[i]}" "iperf3 -c 10.9.0.$((next + 1)) -t 3 -J" \
    | python3 -c "import json,sys; e=json.load(sys.stdin)['end']
print('${suites[i]} to ${suites[next]}: %.1f Gbit/s' % (e['sum_received']['bits_per_second'] / 1e9))"
done

for suite; do
  "$holm" attach "k-$suite" --disk "$run/$suite-more.img,name=more,serial=more"
  in_guest "$suite" "
    for i in \$(seq 100); do [ ! -e /dev/disk/by-id/virtio-more ] || break; sleep 0.1; done
    mkfs.ext4 -q /dev/disk/by-id/virtio-more; mount /dev/disk/by-id/virtio-more /mnt
    cp -r /usr/bin /mnt; umount /mnt; e2fsck -fp /dev/disk/by-id/virtio-more > /dev/null"
  "$holm" detach "k-$suite" more

  # From a snapshot it goes on, with what it had in memory.
  in_guest "$suite" "cp -r /usr/bin /dev/shm; find /dev/shm -type f | sort | xargs -d '\n' sha256sum > /root/sums"
  "$holm" snapshot create "k-$suite" "$run/$suite.snapshot"
  "$holm" kill "k-$suite" > /dev/null
  while "$holm" show "k-$suite" > /dev/null 2>&1; do sleep 0.2; done
  "$holm" restore "$run/$suite.snapshot" --name "k-$suite" --detach --engine "$engine"
  in_guest "$suite" "sha256sum --check --quiet /root/sums
    if dmesg | grep -E 'BUG|WARNING:|Call Trace|Oops|rcu.*stall|lockup|unstable'; then exit 1; fi
    systemctl --failed --no-legend"
  echo "$suite: attached, detached, captured, restored; its kernel has no complaints"
done
for suite; do "$holm" stop "k-$suite"; done
echo "proved in $((SECONDS - begin)) s: $*"
