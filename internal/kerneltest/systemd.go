package kerneltest

// SystemdBoot is a shell script that makes a systemd of the first process of a PID namespace, which must have mount and cgroup namespaces of its own, too. It starts
// test.target, and nothing else; units is run in /etc/systemd/system before, and writes what that wants. /proc/sys is not its to change.
func SystemdBoot(units string) string {
	return `set -e
mount --make-rprivate /
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
mount -t proc proc /proc
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /etc/systemd
mkdir -p /etc/systemd/system/test.target.wants
cd /etc/systemd/system
printf '[Unit]\nDefaultDependencies=no\n' > test.target
` + units + `
PATH=$PATH:/usr/lib/systemd container=lazymig exec systemd --system --log-target=null --show-status=no --unit=test.target
`
}
