#!/usr/bin/env python3
"""From run-instances to `running` and to ssh, next to QEMU's TCG started by hand with the same disk.

    CLIENTS/bin/python proofs/ec2/boot_times.py HOLM DISK [REPETITIONS]

CLIENTS is what `cargo xtask venv` makes; DISK is a Debian disk with ssh and cloud-init (`cargo xtask image debian-disk`). Both have
two vCPUs and 1 GiB, a fresh overlay of the same image, a key and a user's script; Holm's machine is told them by its metadata
service, QEMU's by a NoCloud seed. They take turns; the medians are printed.
"""
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import boto3

HOLM, DISK = (os.path.abspath(p) for p in sys.argv[1:3])
REPETITIONS = int(sys.argv[3]) if len(sys.argv) > 3 else 3
SFDISK, DEBUGFS = "/usr/sbin/sfdisk", "/usr/sbin/debugfs"
PATIENCE = 600
USER_DATA = "#!/bin/sh\ntouch /run/user-data-ran\n"
SSH = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
       "-o", "ConnectTimeout=5", "-o", "LogLevel=ERROR"]


def run(*words, **options):
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


def until_ssh(key, port, address):
    """Until a command has run; seconds since the epoch."""
    end = time.time() + PATIENCE
    while time.time() < end:
        try:
            done = subprocess.run([*SSH, "-i", key, "-p", str(port), f"debian@{address}", "true"], capture_output=True, timeout=20)
            if done.returncode == 0:
                return time.time()
        except subprocess.TimeoutExpired:
            pass
        time.sleep(0.2)
    raise SystemExit(f"no ssh at {address}:{port} in {PATIENCE} s")


def until_done(key, port, address):
    """Until cloud-init has ended, and the user's script has run."""
    wait = "cloud-init status --wait >/dev/null; test -e /run/user-data-ran"
    run(*SSH, "-i", key, "-p", str(port), f"debian@{address}", wait)
    return time.time()


class Holm:
    def __init__(self, work):
        self.work, self.state = work, f"{work}/state"
        self.environment = {**os.environ, "HOLM_STATE": self.state}
        self.daemon = subprocess.Popen([HOLM, "daemon", "--ec2", "127.0.0.1:0"], env=self.environment, stdin=subprocess.DEVNULL)
        while not os.path.exists(f"{self.state}/run/ec2"):
            time.sleep(0.05)
        self.holm("image", "import", DISK, "debian")
        lines = [line.removeprefix("export ") for line in self.holm("env").splitlines() if line.startswith("export ")]
        pairs = dict(line.split("=", 1) for line in lines)
        os.environ.update({name: value.strip("'") for name, value in pairs.items()})
        self.ec2 = boto3.client("ec2")
        while not (found := self.ec2.describe_images(Owners=["self"])["Images"]):
            time.sleep(0.2)
        self.image = found[0]["ImageId"]
        self.key = f"{work}/key"
        made = self.ec2.create_key_pair(KeyName="key", KeyType="ed25519")["KeyMaterial"]
        with open(os.open(self.key, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write(made)
        self.group = self.ec2.create_security_group(GroupName="ssh", Description="ssh")["GroupId"]
        rule = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
        self.ec2.authorize_security_group_ingress(GroupId=self.group, IpPermissions=[rule])

    def holm(self, *words):
        return run(HOLM, *words, env=self.environment)

    def once(self):
        began = time.time()
        launched = self.ec2.run_instances(ImageId=self.image, InstanceType="t3.micro", KeyName="key", MinCount=1, MaxCount=1,
                                          SecurityGroupIds=[self.group], UserData=USER_DATA)
        id = launched["Instances"][0]["InstanceId"]
        times = {"answer": time.time() - began}
        describe = lambda: self.ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"][0]
        while describe()["State"]["Name"] != "running":
            time.sleep(0.02)
        times["running"] = time.time() - began
        address = describe()["PublicIpAddress"]
        port = 22 if os.path.exists(f"{self.state}/port22") else self.port(address)
        times["ssh"] = until_ssh(self.key, port, address) - began
        times["cloud-init done"] = until_done(self.key, port, address) - began
        time.sleep(3)
        stages = json.loads(self.holm("show", id, "-o", "json"))["boot"]["stages"]
        self.ec2.terminate_instances(InstanceIds=[id])
        self.ec2.get_waiter("instance_terminated").wait(InstanceIds=[id], WaiterConfig={"Delay": 1})
        return times, stages

    def port(self, address):
        """22, or where it is if the host's own sshd has that."""
        end = time.time() + 60
        while time.time() < end:
            for port in (10022, 22):
                with socket.socket() as probe:
                    probe.settimeout(1)
                    if probe.connect_ex((address, port)) == 0:
                        return port
            time.sleep(0.1)
        raise SystemExit(f"no port answers at {address}")


class Qemu:
    def __init__(self, work, key):
        self.work, self.key = work, key
        # The image has no boot loader for firmware: QEMU, too, is given the kernel of the disk.
        table = json.loads(run(SFDISK, "-J", DISK))["partitiontable"]
        root = next(p for p in table["partitions"] if p["node"].endswith("img1"))
        inside = f"{DISK}?offset={root['start'] * 512}"
        for name in ("vmlinuz", "initrd.img"):
            listed = run(DEBUGFS, "-R", "ls -p /boot", inside).split("/")
            found = next(word for word in listed if word.startswith(name + "-"))
            run(DEBUGFS, "-R", f"dump /boot/{found} {work}/{name}", inside)
        public = run("ssh-keygen", "-y", "-f", key).strip()
        seed = f"{work}/seed.img"
        files = {"meta-data": "instance-id: qemu\nlocal-hostname: qemu\n",
                 "user-data": "Content-Type: multipart/mixed; boundary=\"b\"\nMIME-Version: 1.0\n\n--b\nContent-Type: text/cloud-config\n\n"
                              f"#cloud-config\nssh_authorized_keys: [\"{public}\"]\n--b\nContent-Type: text/x-shellscript\n\n{USER_DATA}--b--\n"}
        with open(seed, "wb") as file:
            file.truncate(1 << 20)
        run("mkfs.vfat", "-n", "CIDATA", seed, env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
        for name, text in files.items():
            run("mcopy", "-i", seed, "-", f"::{name}", input=text)

    def once(self):
        overlay = f"{self.work}/overlay.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", DISK, "-F", "raw", overlay, "8G")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        began = time.time()
        qemu = subprocess.Popen(
            ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-smp", "2", "-m", "1G", "-display", "none",
             "-kernel", f"{self.work}/vmlinuz", "-initrd", f"{self.work}/initrd.img",
             "-append", "root=/dev/vda1 ro console=ttyS0",
             "-serial", f"file:{self.work}/serial", "-monitor", "none", "-object", "rng-random,id=r,filename=/dev/urandom",
             "-device", "virtio-rng-pci,rng=r", "-drive", f"if=virtio,file={overlay},format=qcow2,cache=writeback",
             "-drive", f"if=virtio,file={self.work}/seed.img,format=raw,readonly=on",
             "-netdev", f"user,id=n,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=n"],
            stdin=subprocess.DEVNULL)
        try:
            times = {"ssh": until_ssh(self.key, port, "127.0.0.1") - began}
            times["cloud-init done"] = until_done(self.key, port, "127.0.0.1") - began
            return times
        finally:
            qemu.kill()
            qemu.wait()
            os.remove(overlay)


def main():
    with tempfile.TemporaryDirectory() as work:
        holm = Holm(work)
        try:
            qemu = Qemu(work, holm.key)
            ours, theirs, stages = [], [], {}
            for number in range(REPETITIONS):
                times, reported = holm.once()
                ours.append(times)
                print(f"{number + 1}: holm {times}", flush=True)
                for stage in reported:
                    if stage.get("seconds") is not None:
                        stages.setdefault(stage["name"], []).append(stage["seconds"])
                theirs.append(qemu.once())
                print(f"{number + 1}: qemu {theirs[-1]}", flush=True)
            median = lambda all, name: statistics.median(times[name] for times in all)
            print(f"\nmedians of {REPETITIONS}, seconds; load {os.getloadavg()}")
            for name in ours[0]:
                other = f"{median(theirs, name):7.1f}" if name in theirs[0] else ""
                print(f"{name:18} holm {median(ours, name):7.2f}   qemu {other}")
            for name, values in stages.items():
                print(f"  stage {name:18} {statistics.median(values):6.1f}")
        finally:
            holm.daemon.terminate()
            holm.daemon.wait()


main()
