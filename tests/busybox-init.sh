#!/bin/busybox sh
# Process 1 of the busybox test guest. Words on the kernel's command line say what it does:
#
#   mark=TEXT      write TEXT at the start of /dev/vda, after saying what was there
#   channel        say ready on the channel each second, answer an identity with attaching; on the console say
#                  the name and the start in it, a UUID of the kernel's and the time
#   lv.channel     the same, and prepare for a freeze, and rehearse, when asked
#   lv.mute-after-thaw  do not react to an identity that says that we were thawed, nor say ready then
#   devices        at the start, and again with each identity: say of each network card its address, and of each
#                  disk but the first its sectors, serial and beginning, and write there that it was used
#   dhcp           ask for an address and say which address and host name came
#   after=N:WHAT   N seconds after start: panic, poweroff, reboot, fill (/dev/vda with zeroes) or hang
#   root=DEVICE    leave the stage to the system there (init=PROGRAM, else /sbin/init)
/bin/busybox mkdir -p /proc /sys /dev /bin
/bin/busybox --install -s /bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
for module in /modules/*; do insmod "$module"; done

# word NAME DEFAULT: what the command line says after NAME=
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p" | tail -n 1 | grep . || echo "$2"; }

if grep -q root= /proc/cmdline; then
    program=$(word init /sbin/init)
    mkdir -p /root
    until device=$(findfs "$(word root)"); do sleep 0.1; done
    mount -t ext4 -o noatime "$device" /root
    for folder in proc sys dev; do mount -o move /$folder /root/$folder; done
    exec switch_root -c /dev/console /root "$program"
fi

say() { echo "latentvirt-busybox: $*"; }

begins() { dd if=/dev/vda bs=32 count=1 2>/dev/null | tr -c ' -~' .; }

# devices TEXT: what is written to each disk after it was looked at
devices() {
    for card in /sys/class/net/eth*; do say "card of $1: $(cat "$card/address")"; done
    for disk in /sys/block/vd[b-z]; do
        name=${disk##*/}
        [ -b "/dev/$name" ] || continue
        blockdev --flushbufs "/dev/$name"
        text=$(dd if="/dev/$name" bs=32 count=1 2>/dev/null | tr -c ' -~' .)
        say "disk of $1: $name $(cat "$disk/size") $(cat "$disk/serial") $text"
        printf %s "$1" | dd of="/dev/$name" conv=notrunc 2>/dev/null
    done
    sync
    say "devices seen: $1"
}

uptime_s() { cut -d . -f 1 /proc/uptime; }

tell() { echo "{\"latentvirt\": 1, $1}" >&3; }

# hear SECONDS: read a line; where no host holds the other end, reading does not wait
hear() { read -r -t "$1" line <&3 || { sleep 0.1; return 1; }; }

# of KEY: what the line has under a key, if that is a text
of() { echo "$line" | sed -n "s/.*\"$1\": *\"\([^\"]*\)\".*/\1/p"; }

# channel WORDS: what the ready line says that we can
channel() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.latentvirt.worker.0 ] && break
        port=
    done
    [ -n "$port" ] || { say "no channel"; return; }
    exec 3<>"/dev/${port##*/}"
    quiet_until=0
    while :; do
        # Waits here for as long as no host holds the other end.
        [ "$(uptime_s)" -lt $quiet_until ] ||
            tell "\"say\": \"ready\", \"helper\": \"busybox\", \"system\": \"linux\", \"can\": [$1]"
        hear 1 && [ -n "$line" ] || continue
        if [ "$(of say)" = freeze ]; then
            sync
            echo 3 >/proc/sys/vm/drop_caches
            say frozen
            tell '"say": "frozen"'
            quiet_until=$(($(uptime_s) + 3))
            continue
        fi
        if [ "$(of say)" = rehearse ]; then
            say rehearsed
            tell '"say": "rehearsed"'
            continue
        fi
        if grep -q lv.mute-after-thaw /proc/cmdline && echo "$line" | grep -q '"thawed": true'; then
            say "heard, and mute"
            return
        fi
        name=$(of name)
        [ -n "$name" ] && break
        tell '"say": "error", "why": "no name in what the host said"'
    done
    date -s "@$(echo "$line" | sed -n 's/.*"time": *\([0-9]*\).*/\1/p')" >/dev/null
    say "identity: $name"
    say "start: $(of start)"
    say "uuid: $(cat /proc/sys/kernel/random/uuid)"
    say "date: $(date +%s)"
    grep -qw devices /proc/cmdline && devices "$(of start)"
    tell '"say": "attaching"'
    while :; do sleep 3600; done
}

dhcp() {
    printf '#!/bin/sh\n[ "$1" = bound ] && echo "latentvirt-busybox: dhcp: $ip $hostname" >/dev/console\n' >/dhcp-script
    chmod 755 /dhcp-script
    ip link set eth0 up
    udhcpc -i eth0 -f -q -O hostname -s /dhcp-script >/dev/null 2>/dev/console
}

later() {
    sleep "${1%%:*}"
    say "${1#*:} now"
    case ${1#*:} in
        panic) echo c >/proc/sysrq-trigger ;;
        poweroff) poweroff -f ;;
        reboot) reboot -f ;;
        fill) dd if=/dev/zero of=/dev/vda bs=1M; sync; say "the disk is full" ;;
        hang) kill -9 -1 ;;
    esac
}

say up
if [ -b /dev/vda ]; then
    echo "disk begins: $(begins)"
else
    echo "disk begins: (no disk)"
fi
for word in $(cat /proc/cmdline); do
    case $word in
        mark=*)
            printf %s "${word#mark=}" | dd of=/dev/vda conv=notrunc 2>/dev/null
            sync
            echo "disk marked: $(begins)"
            ;;
        devices) devices boot ;;
        channel) channel & ;;
        lv.channel) channel '"freeze", "rehearse"' & ;;
        dhcp) dhcp & ;;
        after=*) later "${word#after=}" & ;;
    esac
done
while :; do sleep 3600; done
