/* PID 1 of a Cloister image. Static, lives in the initrd inside the UKI, is measured with it.

   In this order, and no step is left out when one fails: the machine powers off instead.
     1. proc, sysfs, devtmpfs, securityfs; everything writable is memory.
     2. The kernel's modules from the initrd (signed: lockdown sees to it), those that the machine
	has something for, then no more modules.
	In a Nitro enclave, random numbers of its module, and word to the parent.
     3. The root disk that the measured command line names, under dm-verity; an enclave's is a
	file of its ramdisk.
     4. Application and model disk: measured into PCR 14 and 15 by their footers, then closed with
	a separator, and only then opened under dm-verity and mounted. An enclave's are folders of
	its ramdisk, which its registers cover.
     5. Network rules, and after them the network.
     6. The worker, as an ordinary user. Its end is the machine's.

   dm-verity checks every block whenever it is read, and panics where one differs; the command
   line says that a panic restarts the machine, whose registers then begin anew. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define APPLICATION_REGISTER 14
#define MODEL_REGISTER 15
#define PRIVATE (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define READ_ONLY (MS_RDONLY | MS_NOSUID | MS_NODEV)

static char command_line[4096];

/* A line for the console, with the seconds since the kernel started. Nothing here is secret. */
void say(const char *format, ...)
{
	char text[512];
	struct timespec now;
	clock_gettime(CLOCK_BOOTTIME, &now);
	int head = snprintf(text, sizeof text, "init: [%5lld.%03ld] ", (long long)now.tv_sec,
			    now.tv_nsec / 1000000);
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text + head, sizeof text - head - 2, format, arguments);
	va_end(arguments);
	strcat(text, "\n");
	int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
	if (console >= 0) {
		if (write(console, text, strlen(text)) < 0) {
			/* A machine without a console runs all the same. */
		}
		close(console);
	}
}

_Noreturn void halt(const char *why)
{
	say("power off: %s (errno %d)", why, errno);
	sleep(1); /* for the console to be read */
	/* Nobody can switch an enclave off; one that restarts has ended. */
	reboot(is_enclave() ? RB_AUTOBOOT : RB_POWER_OFF);
	for (;;)
		pause();
}

/* The beginning of a file, as text without the white space at its end; halts if it has none. */
size_t read_text(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		halt(path);
	size_t used = 0;
	ssize_t got;
	while (used < size - 1 && (got = read(file, text + used, size - 1 - used)) > 0)
		used += (size_t)got;
	close(file);
	if (used == size - 1)
		halt("a text is too long");
	while (used && (text[used - 1] == '\n' || text[used - 1] == ' '))
		used--;
	text[used] = 0;
	return used;
}

void write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	if (file < 0 || write(file, text, strlen(text)) != (ssize_t)strlen(text))
		halt(path);
	close(file);
}

static void attach(const char *type, const char *where, unsigned long flags, const char *options)
{
	mkdir(where, 0755);
	if (mount(type, where, type, flags, options))
		halt(where);
}

static void mount_kernel(void)
{
	attach("proc", "/proc", PRIVATE, 0);
	attach("sysfs", "/sys", PRIVATE, 0);
	/* A kernel may have mounted it itself. */
	mkdir("/dev", 0755);
	if (mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, 0) && errno != EBUSY)
		halt("/dev");
	attach("securityfs", "/sys/kernel/security", PRIVATE, 0);
	attach("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755,size=25%");
}

/* The place of a virtio device, as microvms are told of it: virtio_mmio.device=SIZE@ADDRESS:IRQ
   with nothing else in it (Linux drivers/virtio/virtio_mmio.c). The number of bytes, or 0. */
static size_t device_argument(const char *word)
{
	static const char name[] = "virtio_mmio.device=";
	static const char plain[] = "0123456789abcdefxKM";
	if (strncmp(word, name, sizeof name - 1))
		return 0;
	const char *at = word + sizeof name - 1;
	size_t size = strspn(at, plain);
	if (!size || at[size] != '@')
		return 0;
	at += size + 1;
	size = strspn(at, plain);
	if (!size || at[size] != ':')
		return 0;
	at += size + 1;
	size = strspn(at, "0123456789");
	return size ? (size_t)(at + size - word) : 0;
}

/* What firmware says of the RAM disk that came with a kernel it was handed (edk2,
   QemuLoadImageLib). Linux' stub has read it by then, and only where nobody offered it one. */
static size_t ram_disk_argument(const char *word)
{
	static const char name[] = "initrd=initrd";
	size_t size = sizeof name - 1;
	return strncmp(word, name, size) || (word[size] && word[size] != ' ') ? 0 : size;
}

/* Whether FOUND is the MEASURED line; behind it a hypervisor may have said where devices are, and
   firmware which RAM disk there is. */
int same_command_line(const char *measured, const char *found)
{
	size_t length = strlen(measured);
	if (strncmp(measured, found, length))
		return 0;
	for (const char *at = found + length; *at;) {
		size_t spaces = strspn(at, " "), word = device_argument(at + spaces);
		if (!word)
			word = ram_disk_argument(at + spaces);
		if (!spaces || !word)
			return 0;
		at += spaces + word;
	}
	return 1;
}

/* Where no register of the processor covers the command line for sure, the initrd has a copy, and
   from then on only the copy counts: Nitro's leave its length open, and of a TDX guest's those that
   hold it may be a TPM's. */
static void check_command_line(void)
{
	static char copy[sizeof command_line];
	read_text("/proc/cmdline", command_line, sizeof command_line);
	if (access("/etc/cmdline", F_OK))
		return;
	read_text("/etc/cmdline", copy, sizeof copy);
	if (!same_command_line(copy, command_line))
		halt("the command line is not the measured one");
	strcpy(command_line, copy);
}

/* The value of NAME=VALUE. A name that is there twice is nobody's: which would count? */
static int argument(const char *name, char *value, size_t size)
{
	size_t length = strlen(name);
	int found = 0;
	for (const char *at = command_line; *at;) {
		size_t word = strcspn(at, " ");
		if (!strncmp(at, name, length) && at[length] == '=') {
			size_t rest = word - length - 1;
			if (found || rest >= size)
				halt("an argument of the command line is there twice, or too long");
			memcpy(value, at + length + 1, rest);
			value[rest] = 0;
			found = 1;
		}
		at += word;
		at += strspn(at, " ");
	}
	return found;
}

/* Mounts the disk of KIND as the command line says: not at all, one that it names, or any one
   that is measured first. */
static void mount_measured(const char *kind, unsigned pcr, const char *where)
{
	char name[64], value[SPEC_TEXT], line[SPEC_TEXT] = "", device[64];
	struct disk disk;
	int tpm = has_tpm();
	snprintf(name, sizeof name, "cloister.%s", kind);
	if (!argument(name, value, sizeof value) || !strcmp(value, "none")) {
		if (tpm)
			measure(pcr, "\0\0\0\0", 4);
		return;
	}
	if (!strcmp(value, "ramdisk")) {
		if (tpm)
			halt("a ramdisk's registers are a Nitro enclave's");
		mount_from_ramdisk(kind, where, READ_ONLY | MS_NOEXEC);
		say("%s from the ramdisk", kind);
		return;
	}
	if (!strcmp(value, "measured")) {
		if (!tpm)
			halt("no TPM to measure a disk into, and no disk named");
		find_only(kind, &disk, line, device, sizeof device);
	} else {
		parse_spec(kind, value, &disk);
		find_pinned(&disk, device, sizeof device);
		snprintf(line, sizeof line, "cloister-disk/1 %s %s %llu %llu %s %s\n", disk.kind,
			 disk.fs, disk.data_blocks, disk.hash_start, disk.root_hash, disk.salt);
	}
	if (tpm) {
		measure(pcr, line, strlen(line));
		measure(pcr, "\0\0\0\0", 4); /* a separator: nothing follows */
	}
	mount_verified(&disk, device, where, READ_ONLY | MS_NOEXEC);
	say("%s %.16s... on %s", kind, disk.root_hash, device);
}

static void mount_root(int enclave)
{
	char value[SPEC_TEXT], device[64];
	struct disk disk;
	if (!argument("cloister.root", value, sizeof value))
		halt("the command line names no root");
	parse_spec("root", value, &disk);
	if (enclave)
		attach_ramdisk("root.img");
	find_pinned(&disk, device, sizeof device);
	mkdir("/sysroot", 0755);
	mount_verified(&disk, device, "/sysroot", READ_ONLY);
	say("root %.16s... on %s", disk.root_hash, device);
}

static void switch_root(void)
{
	static const char *const moved[] = {"/proc", "/sys", "/dev", "/run", 0};
	for (int i = 0; moved[i]; i++) {
		char target[64];
		snprintf(target, sizeof target, "/sysroot%s", moved[i]);
		if (mount(moved[i], target, 0, MS_MOVE, 0))
			halt(target);
	}
	if (chdir("/sysroot") || mount(".", "/", 0, MS_MOVE, 0) || chroot(".") || chdir("/"))
		halt("the root cannot be switched to");
}

/* The program is the measured root's, the rules are the measured application disk's. */
static void load_network_rules(void)
{
	static char *const command[] = {"/usr/sbin/nft", "-f", "/application/nftables.conf", 0};
	static char *const environment[] = {"PATH=/usr/sbin:/usr/bin", 0};
	int status = -1;
	pid_t child = fork();
	if (child == 0) {
		execve(command[0], command, environment);
		_exit(127);
	}
	if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
		halt("the network rules do not load");
	say("network rules");
}

int main(void)
{
	char debug[SPEC_TEXT], platform[SPEC_TEXT];
	if (getpid() != 1)
		return 1;
	umask(022);
	mount_kernel();
	say("start");
	check_command_line();
	load_modules();
	int enclave = argument("cloister.platform", platform, sizeof platform);
	if (enclave) {
		if (strcmp(platform, "nitro") || !is_enclave())
			halt("this machine has no Nitro security module");
		add_entropy();
		tell_parent();
	}
	protect_block_devices();
	mount_root(enclave);
	mount_measured("application", APPLICATION_REGISTER, "/sysroot/application");
	mount_measured("model", MODEL_REGISTER, "/sysroot/model");
	switch_root();
	harden_kernel();
	load_network_rules();
	configure_interfaces("/application/interface.conf");
	if (argument("cloister.debug", debug, sizeof debug))
		say("THIS IS A DEBUG IMAGE: never send it anything that is yours");
	run_worker();
}
