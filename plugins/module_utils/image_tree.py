# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A root file system that is being worked on, in namespaces of its own.

All mounts and loop devices of a build are made inside these namespaces and all processes are theirs too. They end with
the process that holds them, which ends with the build: so a build that is killed leaves folders, and nothing else.
Commands inside see the machine's network, but neither its processes nor its mounts, and can set no kernel parameter.
"""

from __future__ import annotations

import os
import subprocess

from ansible_collections.clachan.platform.plugins.module_utils.image_process import MORTAL, BuildError, find, run, start

BUILD = "/run/clachan-build"
"""Inside: what only the build needs. In memory, so it cannot stay in the image."""
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
VARIABLES = {
    "PATH": SEARCH,
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
    # systemctl enables and masks, and starts nothing
    "SYSTEMD_OFFLINE": "1",
    "APT_CONFIG": BUILD + "/apt.conf",
}
# from a file, as values may be secret
ENTER = '. %s/environment; exec "$@"' % BUILD
# process 1 of the namespaces: waits for the end of its standard input, which the builder holds
HOLD = 'mount -t proc proc /proc 2>&1 || exit 1; hostname "$1"; echo held; read -r _'
UNSHARE = ["unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--"]
PREPARE = """set -e
root=$1
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  IFS=: read -r name major minor <<END
$node
END
  mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
for number in 0:stdin 1:stdout 2:stderr; do ln -s "/proc/self/fd/${number%%:*}" "$root/dev/${number#*:}"; done
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mkdir "$root/run/lock" "$root$2"
[ -e "$root/etc/resolv.conf" ] || : > "$root/etc/resolv.conf"
mount --bind /etc/resolv.conf "$root/etc/resolv.conf"
mount -o remount,bind,ro "$root/etc/resolv.conf"
"""

RELEASE = """
awk -v root="$1/" 'index($2, root) == 1 { print $2 }' /proc/mounts | sort -r | while read -r place; do
  umount "$place" || umount -l "$place"
done
"""


class Tree:
    """`with Tree(folder, name) as tree:`; the work is in `tree.upper`, the whole in `tree.root`."""

    def __init__(self, folder, name="image"):
        self.folder, self.name = folder, name
        self.root, self.upper = os.path.join(folder, "root"), os.path.join(folder, "upper")
        self._unshare = self._holder = None
        self.layered = False

    def __enter__(self):
        command = [*UNSHARE, "sh", "-c", HOLD, "sh", self.name]
        self._unshare = start(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        said = self._unshare.stdout.readline()
        if said != b"held\n":
            text = (said + self._unshare.stderr.read()).decode(errors="replace").strip()
            self.__exit__()
            raise BuildError("namespaces: %s, expected root to make them" % (text or "none"))
        with open("/proc/%d/task/%d/children" % (self._unshare.pid, self._unshare.pid)) as file:
            self._holder = int(file.read().split()[0])
        return self

    def __exit__(self, *_unused):
        self._unshare.stdin.close()
        self._unshare.wait()
        self._unshare.stdout.close()
        self._unshare.stderr.close()

    # -- on the outside of the root file system, with its mounts in sight --------------------------------------------

    def outside(self, *arguments):
        """The command line that runs a command in the namespaces; give it to the functions of image_process."""
        return ["nsenter", "-t", str(self._holder), "-m", "-p", "-u", "-i", "--", *map(str, arguments)]

    def run(self, *arguments):
        return run(self.outside(*arguments))

    def mount_layers(self, lowers):
        """Put a new layer over root file systems, the uppermost first; where overlays do not work, copy the lot."""
        for part in (self.root, self.upper, os.path.join(self.folder, "work")):
            os.mkdir(part, 0o755)
        layers = "lowerdir=%s,upperdir=%s,workdir=%s/work" % (":".join(lowers), self.upper, self.folder)
        try:
            self.run("mount", "-t", "overlay", "overlay", "-o", layers, self.root)
            self.layered = True
        except BuildError:
            if len(lowers) > 1 and is_layer(lowers[0]):
                raise
            os.rmdir(self.root)
            self.run("cp", "-a", "--reflink=auto", lowers[0], self.root)

    def prepare(self, build_files):
        """Make the inside ready for commands. build_files: name below BUILD -> ("text", it) or ("path", its source)."""
        self.run("sh", "-c", PREPARE, "sh", self.root, BUILD)
        for name, (kind, value) in sorted(build_files.items()):
            place = self.root + os.path.join(BUILD, name)
            if kind == "text":
                run(self.outside("tee", place), text=value)
            else:
                self.run("mkdir" if os.path.isdir(value) else "touch", place)
                self.run("mount", "--bind", value, place)
                self.run("mount", "-o", "remount,bind,ro", place)

    def release(self):
        """Take away again what prepare mounted, so that only the root file system is left."""
        self.run("sh", "-c", RELEASE, "sh", self.root)

    # -- inside ------------------------------------------------------------------------------------------------------

    def inside(self, *arguments):
        """The command line that runs a command in the root file system, with the variables of the build."""
        pairs = ["%s=%s" % pair for pair in sorted(VARIABLES.items())]
        return self.outside(
            "chroot", self.root, "env", "-i", "-C", "/root", *pairs, "sh", "-c", ENTER, "sh", *arguments
        )

    def keep_layer(self):
        """What was done, as a folder that mount_layers takes for a lower one."""
        return self.upper if self.layered else self.root


def is_layer(folder):
    """Whether a folder is but a layer over another, and no whole root file system."""
    return not os.path.exists(os.path.join(folder, "usr", "bin", "dpkg"))


def obstacle():
    """Why root file systems cannot be worked on here, found out by doing it; None when they can."""
    if os.geteuid() != 0:
        return "it is not run by root"
    missing = [name for name in ("unshare", "nsenter", "chroot", "setpriv") if find(name) is None]
    if missing:
        return "commands %s are missing" % ", ".join(missing)
    done = subprocess.run(
        [*MORTAL, *UNSHARE, "sh", "-c", 'mount -t tmpfs tmpfs "$1" && mount -t proc proc "$1"', "sh", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() or None if done.returncode else None
