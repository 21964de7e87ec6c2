"""A throw-away virtual machine with cgroup v2 and PSI, on top of this machine's own files.

Owns a boot of Debian's kernel in qemu without KVM, root or network. The rule kept: the machine's
root is shared read-only with an overlay in memory above it, so that every interpreter and package
installed here is there too, and nothing the command does reaches this machine but its output.

Needs qemu-system-x86 and busybox-static; the kernel's package is taken from /boot, or downloaded
once by apt-get and unpacked, not installed. `python tests/support/machine.py COMMAND` runs any.
"""

from __future__ import annotations

import gzip
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_MIB = 1_536
CPUS = 2
SECONDS_MAX = 600
CACHE = Path(os.environ.get("MASS_VM_CACHE", "~/.cache/mass-vm")).expanduser()
PACKAGE = "linux-image-amd64"
NINE_P = "trans=virtio,version=9p2000.L,msize=262144"
# In the order of loading; some are built into some kernels, and then there is no file.
MODULES = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci",
    "netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "overlay",
)  # fmt: skip

INIT = f"""#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs d /dev; $b mount -t proc p /proc; $b mount -t sysfs s /sys
for m in {" ".join(MODULES)}; do [ -f /m/$m.ko ] && $b insmod /m/$m.ko; done
$b mount -t 9p -o {NINE_P},ro,cache=loose host /low
$b mount -t tmpfs -o size=50% t /rw; $b mkdir /rw/u /rw/w
$b mount -t overlay -o lowerdir=/low,upperdir=/rw/u,workdir=/rw/w o /new
for f in proc sys dev; do $b mount -o move /$f /new/$f; done
$b mount -t cgroup2 c /new/sys/fs/cgroup
$b mkdir -p /new/dev/shm /new/dev/pts
$b mount -t tmpfs s /new/dev/shm; $b mount -t devpts p /new/dev/pts
$b mount -t tmpfs r /new/run; $b mkdir /new/run/job
$b mount -t 9p -o {NINE_P} job /new/run/job
$b ip link set lo up 2>/dev/null || $b ifconfig lo 127.0.0.1 up
$b hostname mass-vm
$b cat /new/proc/uptime > /new/run/job/booted
$b chroot /new /bin/sh /run/job/command > /new/run/job/output 2>&1
echo $? > /new/run/job/status
$b sync; $b poweroff -f
"""


class Unavailable(Exception):
    """No virtual machine can be had here; the message says what is missing and how to get it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image and the directory of its modules."""

    image: Path
    modules: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command in the machine left; `status` is None when it never ended."""

    status: int | None
    output: str
    boot_seconds: float | None


def run(
    command: Sequence[str], directory: Path, job: Path, *, seconds_max: int = SECONDS_MAX
) -> Ended:
    """Run the command in a new machine, in that directory; files it puts into /run/job are in job.

    Raises:
        Unavailable: no machine can be had.
    """
    qemu = _program("qemu-system-x86_64", "qemu-system-x86")
    kernel = find_kernel()
    initramfs = job / "initramfs.gz"
    initramfs.write_bytes(build_initramfs(kernel))
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "LANG": "C.UTF-8"}
    exports = "".join(f"export {name}={shlex.quote(text)}\n" for name, text in environment.items())
    (job / "command").write_text(
        f"cd {shlex.quote(str(directory))}\n{exports}{shlex.join(command)}\n"
    )
    arguments = [
        qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-serial", f"file:{job / 'console'}", "-machine", "q35", "-accel", "tcg,thread=multi",
        "-cpu", "max", "-smp", str(CPUS), "-m", str(MEMORY_MIB),
        "-kernel", str(kernel.image), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 psi=1 mitigations=off tsc=reliable "
        "random.trust_cpu=on loglevel=4",
        "-fsdev", "local,id=h,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device", "virtio-9p-pci,fsdev=h,mount_tag=host",
        "-fsdev", f"local,id=j,path={job},security_model=none",
        "-device", "virtio-9p-pci,fsdev=j,mount_tag=job",
    ]  # fmt: skip
    try:
        subprocess.run(arguments, check=False, timeout=seconds_max, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        print(f"vm: not ended within {seconds_max} s", file=sys.stderr)
    status, booted = _text(job / "status"), _text(job / "booted")
    output = _text(job / "output")
    if not status:
        output += "\nthe machine's console:\n" + _text(job / "console")[-4_000:]
    return Ended(
        int(status) if status else None, output, float(booted.split()[0]) if booted else None
    )


def why_unavailable() -> str:
    """Return why no machine can be had here, empty when one can."""
    try:
        _program("qemu-system-x86_64", "qemu-system-x86")
        _program("busybox", "busybox-static")
        find_kernel()
    except Unavailable as error:
        return str(error)
    return ""


def find_kernel() -> Kernel:
    """Return an installed kernel or one unpacked earlier; else download and unpack one.

    Raises:
        Unavailable: there is none, and the download failed.
    """
    unpacked = CACHE / "kernel"
    for root in (Path("/"), unpacked):
        if (found := _kernel_below(root)) is not None:
            return found
    _download(unpacked)
    found = _kernel_below(unpacked)
    if found is None:
        raise Unavailable(f"the package of {PACKAGE} holds no kernel with 9p modules")
    return found


def _kernel_below(root: Path) -> Kernel | None:
    for image in sorted((root / "boot").glob("vmlinuz-*"), reverse=True):
        modules = root / "lib" / "modules" / image.name.removeprefix("vmlinuz-")
        if os.access(image, os.R_OK) and _module(modules, "9p") and _module(modules, "overlay"):
            return Kernel(image, modules)
    return None


def _module(modules: Path, name: str) -> Path | None:
    return next(iter(modules.rglob(f"{name}.ko*")), None) if modules.is_dir() else None


def _download(unpacked: Path) -> None:
    """Fetch the package that PACKAGE stands for; complete, or not there at all."""
    for program in ("apt-cache", "apt-get", "dpkg"):
        _program(program, f"Debian's {program}")
    depends = subprocess.run(
        ["apt-cache", "depends", PACKAGE], check=False, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in depends.splitlines() if "Depends: linux-image" in line]
    if not names:
        raise Unavailable(f"apt-get knows no {PACKAGE}: apt-get update first")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        got = subprocess.run(
            ["apt-get", "download", names[0]],
            check=False, cwd=directory, capture_output=True, text=True,
        )  # fmt: skip
        packages = list(Path(directory).glob("*.deb"))
        if not packages:
            raise Unavailable(f"apt-get cannot download {names[0]}: {got.stderr.strip()[-300:]}")
        target = Path(directory, "kernel")
        subprocess.run(["dpkg", "-x", str(packages[0]), str(target)], check=True)
        target.rename(unpacked)


def build_initramfs(kernel: Kernel) -> bytes:
    """Return a compressed archive of busybox, the modules and one script."""
    busybox = Path(_program("busybox", "busybox-static"))
    directories = ("bin", "m", "dev", "proc", "sys", "low", "rw", "new")
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(directories, (0o040755, b""))
    files["bin/busybox"] = (0o100755, busybox.read_bytes())
    files["init"] = (0o100755, INIT.encode())
    for name in MODULES:
        module = _module(kernel.modules, name)
        if module is not None:
            content = module.read_bytes()
            files[f"m/{name}.ko"] = (
                0o100644, lzma.decompress(content) if module.suffix == ".xz" else content
            )  # fmt: skip
    return gzip.compress(b"".join(_archive(files)), compresslevel=1)


def _archive(files: dict[str, tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield a cpio archive of the form "newc", the one the kernel unpacks."""
    for number, (name, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], 1):
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % field for field in fields)
        yield _padded(header + encoded)
        yield _padded(content)


def _padded(content: bytes) -> bytes:
    return content + b"\0" * (-len(content) % 4)


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Unavailable(f"{name} is missing: apt-get install {package}")
    return found


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def main() -> int:
    """Run the command of the arguments; say what it printed, and exit as it did."""
    with tempfile.TemporaryDirectory(prefix="mass-vm-") as job:
        ended = run(sys.argv[1:], Path.cwd(), Path(job))
    sys.stdout.write(ended.output)
    print(f"vm: booted in {ended.boot_seconds} s of its own time", file=sys.stderr)
    return 125 if ended.status is None else ended.status


if __name__ == "__main__":
    sys.exit(main())
