#!/usr/bin/env bash
# A shared folder whose server is gone holds nobody up but who uses it: the machine is paused, captured, reset and killed.
#
#   proofs/share-hang.sh HOLM      as root (for /dev/fuse), with the image `debian` (cargo xtask image debian)
#
# The folder is a small FUSE file system whose server is stopped (SIGSTOP) before the guest reads.
set -euo pipefail
holm=$(realpath "$1") name=proof-hang-$$
directory=$(mktemp -d) server='' machine=''
remove() {
  for process in $machine $server; do kill -KILL "$process" 2>/dev/null || true; done
  umount -l "$directory/folder" 2>/dev/null || true
  rm -rf --one-file-system "$directory"
}
trap remove EXIT
step() { echo "== $(date +%T) $*"; }
fail() { echo "FAILED: $*"; cat "$directory/errors"; exit 1; }
soon() { timeout 30 "$holm" "$@" || fail "$* took too long"; }

cat >"$directory/server.py" <<'SERVER'
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
if libc.mount(b"hang", sys.argv[1].encode(), b"fuse", 0, options):
    sys.exit(os.strerror(ctypes.get_errno()))
def attributes(node):
    mode, size = (0o40755, 0) if node == 1 else (0o100644, 100000)
    return struct.pack("<QQQQQQIIIIIIIIII", node, size, 0, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
while True:
    try:
        request = os.read(fd, 1 << 20)
    except OSError:
        break
    _, code, unique, node = struct.unpack_from("<IIQQ", request)
    body = request[40:]
    def answer(data=b"", error=0):
        os.write(fd, struct.pack("<IiQ", 16 + len(data), -error, unique) + data)
    if code == 26: answer(struct.pack("<IIIIHHIIHHI", 7, 31, 65536, 0, 16, 12, 4096, 1, 1, 0, 0) + bytes(28))
    elif code == 1 and body.rstrip(b"\0") == b"f": answer(struct.pack("<QQQQII", 2, 0, 0, 0, 0, 0) + attributes(2))
    elif code == 1: answer(error=2)
    elif code == 3: answer(struct.pack("<QII", 0, 0, 0) + attributes(node))
    elif code in (14, 27): answer(struct.pack("<QII", 1, 0, 0))
    elif code == 15: answer(bytes(4096))
    elif code in (18, 25, 29): answer()
    elif code not in (2, 42): answer(error=38)
SERVER
mkdir "$directory/folder"
python3 "$directory/server.py" "$directory/folder" & server=$!
until mountpoint -q "$directory/folder"; do sleep 0.1; kill -0 "$server"; done

start() {
  kill -CONT "$server"
  "$holm" run debian --name "$name" --memory 512M --timeout 10m --on-reset reboot --agent-socket "$directory/agent" \
    --serial "file=$directory/serial" --share "$directory/folder" </dev/null >/dev/null 2>>"$directory/errors" & machine=$!
  hang
}
hang() {
  "$holm" exec --wait 4m "$directory/agent" -- sh -c 'mount -t virtiofs holm /mnt && stat /mnt/f >/dev/null'
  kill -STOP "$server"
  "$holm" exec "$directory/agent" -- sh -c '(cat /mnt/f >/dev/null 2>&1 &) ; sleep 2; pgrep -x cat >/dev/null' ||
    fail "nothing hangs"
}
step start; start
step pause; soon pause "$name"
step resume; soon resume "$name"
[ "$(soon exec "$directory/agent" -- echo alive)" = alive ] || fail "the guest is not alive"
step snapshot; soon snapshot create "$name" "$directory/snapshot"
[ "$(soon exec "$directory/agent" -- echo alive)" = alive ] || fail "the guest is not alive"
step reset; soon reset "$name"
sleep 2
"$holm" exec --wait 4m "$directory/agent" -- true
step kill; soon kill "$name"
for _ in $(seq 100); do kill -0 "$machine" 2>/dev/null || break; sleep 0.1; done
! kill -0 "$machine" 2>/dev/null || fail "the process is still there 10 s after its end"
step "all as it should be"
