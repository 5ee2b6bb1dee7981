#!/bin/sh
# The system tools the tests run for real. As root they are installed; otherwise say what will be left out.
set -eu
PATH=$PATH:/usr/sbin:/sbin
packages=""
need() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || packages="$packages $2"
}
need adb adb
need lxc-start lxc
need nft nftables
need ip iproute2
need mksquashfs squashfs-tools
need squashfuse squashfuse
need fusermount3 fuse3
need mkfs.ext4 e2fsprogs
need slirp4netns slirp4netns
need newuidmap uidmap
need setpriv util-linux
need losetup mount
need dbus-daemon dbus
need dnsmasq dnsmasq-base
need gcc gcc
need strace strace
need socat socat
need nc netcat-openbsd
need telnet telnet
need ping iputils-ping
need desktop-file-validate desktop-file-utils
need gio libglib2.0-bin
need busctl systemd
need groff groff-base
need Xvfb xvfb
need xclip xclip
need xsel xsel
need git git
need pulseaudio pulseaudio
need pacat pulseaudio-utils
need ps procps
need ffmpeg ffmpeg
need node nodejs
need npm npm
[ -e /usr/include/stdio.h ] || packages="$packages libc6-dev"
if [ -n "$packages" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "anbox-tw: installing$packages"
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    else
        echo "anbox-tw: not root, so the tests that need these Debian packages are left out:$packages"
    fi
fi
if [ "$(id -u)" != 0 ]; then
    echo "anbox-tw: not root, so the tests that need root (LXC, network namespaces, netlink) are left out"
fi
