# Runs in the guest, on two vCPUs; twice, the second time after a reset.
if [ "$(head -c 5 /dev/vda)" = again ]; then
  echo "after-the-reset"
  exit 0
fi
echo "cpus $(nproc)"
dmesg | grep -o 'kvm-clock: Using msrs' | head -n 1
dd if=/dev/urandom of=/tmp/random bs=1M count=6 2> /dev/null
dd if=/tmp/random of=/dev/vda bs=64k oflag=direct conv=fsync 2> /dev/null
sync
echo 3 > /proc/sys/vm/drop_caches
head -c 6291456 /dev/vda | cmp - /tmp/random && echo "disk-is-right"
ifconfig eth0 10.0.2.15 up
wget -q -O - http://10.0.2.2:8000/hello
# Both CPUs at work, and woken by each other.
(dd if=/dev/zero bs=1k count=4000 2> /dev/null | cat | md5sum) &
dd if=/dev/zero bs=1k count=4000 2> /dev/null | cat | md5sum
wait
[ $(awk '$1 == "cpu" { print $9 }' /proc/stat) -gt 0 ] && echo time-was-stolen
dmesg | grep 'Oops\|BUG:\|stall' && echo trouble
printf again | dd of=/dev/vda conv=notrunc,fsync 2> /dev/null
sync
reboot -f
