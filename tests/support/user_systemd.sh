#!/bin/sh
# A systemd user instance of its own, on a machine that runs none. Needs root; run by tests/support/user_systemd.py as
#   unshare --mount sh user_systemd.sh CGROUP
# systemd wants to be told that the machine runs it, and a part of the cgroup tree to itself.
set -eu
mount --make-rprivate /
mount -t tmpfs none /run
mkdir -p /run/systemd/system
for below in /sys/fs/cgroup/*; do umount -l "$below" 2>/dev/null || true; done
umount -l /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
# In a cgroup namespace of its own, so that the folder above is the root of what it sees.
exec unshare --cgroup sh -c 'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$0" "$@"' \
    /lib/systemd/systemd --user --log-target=console --log-level=notice --show-status=no
