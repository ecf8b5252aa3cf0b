#!/bin/sh
# Runs inside a new Debian that is to be like the cloud images that distributions publish: cloud-init, sshd and
# netplan, and nothing of latentvirt's. buildbot-worker is there already, since the guests of tests have no
# network to install it from.
set -eu
systemctl disable buildbot-worker.service >/dev/null 2>&1 || true
systemctl enable systemd-networkd.service systemd-resolved.service
passwd --lock root >/dev/null
echo localhost >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n' >/etc/hosts
rm -f /etc/resolv.conf /etc/ssh/ssh_host_*
ln -s /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
echo 'LABEL=latentvirt-root / ext4 errors=remount-ro 0 1' >/etc/fstab

echo 'set prefix=(hd0,msdos1)/boot/grub' >/boot/grub/early.cfg
grub-mkimage -O i386-pc -p '(hd0,msdos1)/boot/grub' -c /boot/grub/early.cfg -o /boot/grub/core.img \
    biosdisk part_msdos ext2 normal linux echo serial terminal test
cp /usr/lib/grub/i386-pc/boot.img /boot/grub/boot.img
[ -e /vmlinuz ] || ln -s "$(ls /boot/vmlinuz-* | sed 's,^/,,;q')" /vmlinuz
[ -e /initrd.img ] || ln -s "$(ls /boot/initrd.img-* | sed 's,^/,,;q')" /initrd.img
rm -f /etc/apt/apt.conf.d/99mmdebstrap /tmp/latentvirt-configure
