"""Puts together what `gcr.io/distroless/python3-debian12` has: the files of some packages of Debian."""

import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

PACKAGES = (
    "base-files", "ca-certificates", "media-types", "netbase", "tzdata", "libc6", "libssl3", "libgcc-s1", "libgomp1",
    "libstdc++6", "libbz2-1.0", "libcom-err2", "libcrypt1", "libdb5.3", "libexpat1", "libffi8", "libgssapi-krb5-2",
    "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0", "liblzma5", "libncursesw6", "libnsl2",
    "libpython3.11-minimal", "libpython3.11-stdlib", "libreadline8", "libsqlite3-0", "libtinfo6", "libtirpc3",
    "libuuid1", "python3-distutils", "python3.11-minimal", "zlib1g",
)  # fmt: skip
"""As listed in python3/python.bzl, cc/cc.bzl and base/base.bzl of GoogleContainerTools/distroless."""

DEVICES = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
"""Those of /dev that every container has -> their minor numbers."""

PROGRAMS = "/usr/sbin:/usr/bin:/sbin:/bin"


def is_here() -> bool:
    """Whether this machine is Debian 12, whose packages apt finds."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    return release.get("ID") == "debian" and release.get("VERSION_ID") == "12"


def unpack(root: Path) -> None:
    """Download the packages, and unpack them without running their scripts."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *PACKAGES]
        finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if finished.returncode != 0:
            # What apt knows of the packages may be too old.
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(command, cwd=folder, check=True)
        for package in sorted(Path(folder).glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for name in ("python", "python3"):
        (root / "usr" / "bin" / name).symlink_to("python3.11")
    # Images of distroless have a certificate file, and neither manuals nor a package manager.
    for folder in ("doc", "man", "lintian", "bug"):
        shutil.rmtree(root / "usr" / "share" / folder, ignore_errors=True)


def add_devices(root: Path) -> None:
    """Put into /dev what a container gets there from whoever starts it."""
    folder = root / "dev"
    folder.mkdir(exist_ok=True)
    for name, minor in DEVICES.items():
        path = folder / name
        os.mknod(path, stat.S_IFCHR, os.makedev(1, minor))
        path.chmod(0o666)
