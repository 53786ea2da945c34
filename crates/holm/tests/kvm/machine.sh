#!/bin/sh
# Runs in the emulated host: what the KVM engine must do. DEBUG_REGISTERS=1: it
# arms its guests' debug registers.
export HOME=/root PATH=/bin DEBUG_REGISTERS
step() {
  name=$1; shift
  echo "== BEGIN $name"
  "$@" < /dev/null 2>&1
  echo "== END $name $?"
  echo "== UPTIME $(cut -d' ' -f1 /proc/uptime)"
}
until_has() {
  tries=0
  until grep -q "$2" "$1"; do
    tries=$((tries + 1))
    [ $tries -lt 1200 ] || { echo "no $2 in $1:"; tail -n 20 "$1"; return 1; }
    usleep 100000
  done
}
in_rust() {
  HOLM_IN_EMULATED_HOST=$1 /test/e2e_kvm --exact the_kvm_engine_in_an_emulated_host --nocapture
}
in_guest() { echo "noxsave quiet cmd=$(base64 < "$1" | tr -d '\n')"; }

whole_machine() {
  httpd -p 127.0.0.1:8000 -h /test
  dd if=/dev/zero of=/tmp/disk bs=1M count=8 2> /dev/null
  HOLM_LOG=warn,engine_kvm=debug holm run tiny --cpus 2 --memory 192M \
    --disk /tmp/disk --on-reset reboot \
    --append "reboot=t $(in_guest /test/guest.sh)" --timeout 200s 2> /tmp/log
  status=$?
  cat /tmp/log
  return $status
}
# One guest goes from KVM to the software engine and back.
snapshots() {
  mkfifo /tmp/i1 /tmp/i2 /tmp/i3
  holm run tiny --engine kvm --name a --cpus 2 --memory 128M --append 'noxsave quiet' \
    < /tmp/i1 > /tmp/o1 2>&1 &
  exec 3> /tmp/i1
  until_has /tmp/o1 'leave the shell' || return 1
  echo 'x=17; (while :; do n=$((n+1)); echo $n > /tmp/count; done) & echo the-""state' >&3
  until_has /tmp/o1 the-state || return 1
  holm show a -o json | tr -d ' \n'; echo
  holm snapshot create a /tmp/s0 || return 1
  echo 'x=$((x+25)); echo new-""state' >&3
  until_has /tmp/o1 new-state || return 1
  holm snapshot create a /tmp/s1 --incremental && holm kill a || return 1
  holm restore /tmp/s1 --engine soft --name b < /tmp/i2 > /tmp/o2 2>&1 &
  exec 4> /tmp/i2
  echo 'until read c < /tmp/count; do :; done; echo first-""$((x+1))-$((c>0))' >&4
  until_has /tmp/o2 'first-43-1' || return 1
  holm show b -o json | tr -d ' \n'; echo
  holm snapshot create b /tmp/s2 && holm kill b || return 1
  holm restore /tmp/s2 --engine kvm --name c < /tmp/i3 > /tmp/o3 2>&1 &
  last=$!
  exec 5> /tmp/i3
  echo 'until read d < /tmp/count; do :; done; echo second-""$((x+2))-$((d>=c)); cut -d" " -f1 /proc/uptime; poweroff -f' >&5
  until_has /tmp/o3 'second-44-1' || return 1
  wait $last || return 1
  ! grep -E 'Oops|BUG|stuck|stall' /tmp/o1 /tmp/o2 /tmp/o3
}

for module in irqbypass kvm kvm-amd; do insmod /lib/modules/$module.ko || exit 1; done
ifconfig lo up
step doctor holm doctor -o json
step engines in_rust engines
step machine whole_machine
step snapshots snapshots
cat /root/.cache/holm/images/tiny/initrd /test/device-modules.cpio > /tmp/initrd
step work in_rust work
echo "== END of all"
