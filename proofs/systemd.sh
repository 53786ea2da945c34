#!/usr/bin/env bash
# The units of packaging/systemd under a real systemd, in a Debian guest of Holm.
#
#   proofs/systemd.sh HOLM      as who has the images (cargo xtask image debian-disk; cargo xtask image tiny)
set -euo pipefail
holm=$(realpath "$1")
top=$(realpath "$(dirname "$0")/..")
images=${XDG_CACHE_HOME:-$HOME/.cache}/holm/images
work=$(mktemp -d)
name=systemd-proof-$$
trap '"$holm" kill $name 2>/dev/null; rm -rf "$work"' EXIT
mkdir -p "$work/share/units" "$work/root/boot/grub"
cp "$holm" "$work/share/holm"
cp -r "$top/packaging/systemd/." "$work/share/units"
# A disk that starts tiny, for a machine in the guest.
cp "$images/tiny/vmlinuz" "$images/tiny/initrd" "$work/root/boot"
printf 'menuentry Tiny { linux /boot/vmlinuz console=ttyS0 quiet\n initrd /boot/initrd }\n' >"$work/root/boot/grub/grub.cfg"
truncate -s 66M "$work/share/tiny.img"
printf 'label: gpt\nstart=1MiB, size=64MiB, type=L\n' | /usr/sbin/sfdisk -q "$work/share/tiny.img"
/usr/sbin/mke2fs -q -F -t ext4 -d "$work/root" -E offset=1048576 "$work/share/tiny.img" 64M

cat >"$work/share/proof.sh" <<'PROOF'
set -euo pipefail
step() { echo "== $*"; }
fail() { echo "FAILED: $*"; systemctl status holm.service holm.socket --no-pager -l || true; journalctl -u holm -n 30 --no-pager; exit 1; }
until_() { for _ in $(seq 600); do "${@:2}" && return; sleep 0.2; done; fail "$1"; }
install -m 755 /mnt/holm /usr/bin/holm
cp /mnt/units/holm.service /mnt/units/holm.socket /etc/systemd/system
export HOME=/root
step "systemd-analyze verify"
systemd-analyze verify /etc/systemd/system/holm.service /etc/systemd/system/holm.socket
systemctl daemon-reload
step "the socket starts the service"
systemctl enable --now holm.socket
systemctl is-active holm.service && fail "it runs already"
holm key ls || fail "nobody answers at the socket"
systemctl is-active holm.service || fail "it does not run"
curl -s -o /dev/null -w '%{http_code}\n' http://127.0.0.1:4780/ || fail "EC2's socket"
step "a machine"
holm image import /mnt/tiny.img tiny
for _ in $(seq 30); do holm create tiny --name one --type t2.nano --wait running && break; sleep 1; done
holm ls
running() { [ "$(holm ls -o json | grep -c '"running"')" -ge 1 ]; }
until_ "running" running
booted() { holm logs one 2>/dev/null | grep -q HOLM-READY; }
until_ "the guest's console" booted
pid() { pgrep -f 'holm machine' | head -n 1; }
before=$(pid)
step "stop: the machine goes on"
systemctl stop holm.service
systemctl is-active holm.service && fail "it still runs"
[ "$(pid)" = "$before" ] || fail "the machine is gone"
step "start by the socket, the same machine"
holm ls; running || fail "not running"
[ "$(pid)" = "$before" ] || fail "another machine"
step "restart"
systemctl restart holm.service
running || fail "not running after a restart"
[ "$(pid)" = "$before" ] || fail "another machine"
step "killed: systemd starts it again"
main=$(systemctl show -p MainPID --value holm.service)
kill -KILL "$main"
again() { now=$(systemctl show -p MainPID --value holm.service); [ "$now" != 0 ] && [ "$now" != "$main" ]; }
until_ "another daemon" again
until_ "running" running
[ "$(pid)" = "$before" ] || fail "another machine"
step "the end"
holm rm one
gone() { [ -z "$(pid)" ] && [ -z "$(ls /var/lib/holm/machines)" ]; }
until_ "the machine's end" gone
journalctl -u holm --no-pager -o cat | grep -v -e '^Start' -e '^Stop' -e '^holm.s' | tail -n 10
stat -c '%a %U %n' /var/lib/holm /var/lib/holm/run /var/lib/holm/run/api.sock
systemctl stop holm.socket holm.service

step "the user's units"
useradd --create-home one
mkdir -p /home/one/.config/systemd/user /home/one/.local/bin
cp /mnt/units/user/* /home/one/.config/systemd/user
cp /mnt/holm /home/one/.local/bin/holm
chown -R one: /home/one
# As logind does it, where there is one (package libpam-systemd), after `loginctl enable-linger one`.
install -d -o one -m 700 /run/user /run/user/"$(id -u one)"
chmod 755 /run/user
systemd-run --quiet --unit=users-manager --uid=one -p Delegate=yes -p Type=notify -E HOME=/home/one \
	-E XDG_RUNTIME_DIR=/run/user/"$(id -u one)" -E PATH=/usr/bin:/bin /lib/systemd/systemd --user
user() { runuser -u one -- env XDG_RUNTIME_DIR=/run/user/"$(id -u one)" HOME=/home/one "$@"; }
manager() { user systemctl --user is-system-running 2>/dev/null | grep -q -e running -e degraded; }
until_ "the user's systemd" manager
user systemd-analyze --user verify /home/one/.config/systemd/user/holm.service /home/one/.config/systemd/user/holm.socket
user systemctl --user enable --now holm.socket || fail "the user's socket"
user /home/one/.local/bin/holm key ls || { user journalctl --user -n 20 --no-pager; fail "nobody answers at the user's socket"; }
user systemctl --user is-active holm.service || fail "the user's service"
echo PASSED
PROOF
"$holm" run debian-disk --name "$name" --detach --ephemeral --cpus 2 --memory 3G --share "$work/share,tag=proof,readonly"
"$holm" exec --wait 5m "$name" -- sh -c 'mount -t virtiofs proof /mnt && bash /mnt/proof.sh 2>&1'
