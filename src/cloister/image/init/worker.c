/* What the kernel may no longer do, and the worker as an ordinary user. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WORKER 990 /* user and group; nothing in the image belongs to it */
#define MAX_ARGUMENTS 32
#define BOOT_LOG "/sys/kernel/security/tpm0/binary_bios_measurements"
#define PRIVATE_DIRECTORY "/run/cloister"
#define START PRIVATE_DIRECTORY "/start"
#define TDX_LOG "/sys/firmware/acpi/tables/data/CCEL"
#define CONFIGFS "/sys/kernel/config"
#define REPORT CONFIGFS "/tsm/report/cloister" /* the entry that cloister.attester knows */
#define PORTS "/dev/virtio-ports" /* where others have udev put them */

/* Each of these holds until the next boot: the first two lines cannot be taken back, and nobody
   is left who could change the others. */
static const char *const settings[][2] = {
	{"/proc/sys/kernel/kexec_load_disabled", "1"},
	{"/proc/sys/kernel/yama/ptrace_scope", "3"},
	{"/proc/sys/kernel/unprivileged_bpf_disabled", "1"},
	{"/proc/sys/kernel/core_pattern", "|/nonexistent"},
	{"/proc/sys/fs/suid_dumpable", "0"},
	{"/proc/sys/kernel/sysrq", "0"},
	{"/proc/sys/kernel/dmesg_restrict", "1"},
	/* Nothing of the kernel's on the console, a panic's registers and stack included: they may
	   hold what somebody asked. Only a level of 0 is not raised by a panic. */
	{"/proc/sys/kernel/printk", "0"},
	{"/proc/sys/kernel/kptr_restrict", "2"},
	{"/proc/sys/kernel/perf_event_paranoid", "3"},
	{"/proc/sys/kernel/panic_on_oops", "1"},
	{"/proc/sys/vm/unprivileged_userfaultfd", "0"},
	{"/proc/sys/net/core/bpf_jit_harden", "2"},
	{"/proc/sys/net/ipv4/ip_forward", "0"},
	/* Where one of the two says so, a host that forwards nothing believes redirects; the second is
	   for the cards that are there as well. */
	{"/proc/sys/net/ipv4/conf/all/accept_redirects", "0"},
	{"/proc/sys/net/ipv4/conf/default/accept_redirects", "0"},
	{"/proc/sys/net/ipv4/conf/all/rp_filter", "1"},
	{"/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"},
	{"/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"},
};

void harden_kernel(void)
{
	for (size_t i = 0; i < sizeof settings / sizeof *settings; i++)
		write_text(settings[i][0], settings[i][1]);
}

/* The firmware's log is for root alone; the worker's report carries it. */
static void copy_boot_log(void)
{
	static char piece[65536];
	int from = open(BOOT_LOG, O_RDONLY | O_CLOEXEC);
	int to = open(PRIVATE_DIRECTORY "/boot-log", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0444);
	ssize_t got = 0;
	if (to < 0)
		halt("the boot log cannot be copied");
	while (from >= 0 && (got = read(from, piece, sizeof piece)) > 0)
		if (write(to, piece, (size_t)got) != got)
			halt("the boot log cannot be copied");
	if (from >= 0)
		close(from);
	close(to);
}

static void give(const char *path)
{
	if (chown(path, WORKER, WORKER) && errno != ENOENT)
		halt(path);
}

/* Whether a name that the host chose can be that of a file here. */
static int is_plain(const char *name)
{
	size_t plain = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789.-");
	return *name && *name != '.' && !name[plain];
}

/* The kernel lets root alone ask for reports of a confidential machine, so the worker gets one
   entry to ask by. Where there is no such interface, or nothing behind it, it gets none. */
static void give_report_entry(void)
{
	static const char *const files[] = {"inblob", "outblob", "auxblob", "generation", "provider"};
	if (mount("configfs", CONFIGFS, "configfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, 0) ||
	    mkdir(REPORT, 0755))
		return;
	for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
		char path[64];
		snprintf(path, sizeof path, REPORT "/%s", files[i]);
		give(path);
	}
}

/* The virtio ports are the worker's, who finds them by name: what it answers there, it decides. */
static void give_ports(void)
{
	DIR *directory = opendir("/sys/class/virtio-ports");
	mkdir(PORTS, 0755);
	for (struct dirent *entry; directory && (entry = readdir(directory));) {
		char path[320], name[128], link[192];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		give(path);
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (access(path, F_OK) || !read_text(path, name, sizeof name) || !is_plain(name))
			continue;
		snprintf(link, sizeof link, PORTS "/%s", name);
		snprintf(path, sizeof path, "../%s", entry->d_name);
		if (symlink(path, link))
			halt("two ports of one name");
	}
	if (directory)
		closedir(directory);
}

static int limit(int resource, rlim_t value)
{
	struct rlimit both = {value, value};
	return setrlimit(resource, &both);
}

/* False where the kernel left the child any of them. */
static int gives_up_rights(void)
{
	for (int capability = 0; capability <= 63; capability++)
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) && errno != EINVAL)
			return 0;
	/* One byte, not none: where core_pattern names a program, only that stops a dump. */
	if (limit(RLIMIT_CORE, 1) || limit(RLIMIT_MEMLOCK, RLIM_INFINITY) ||
	    limit(RLIMIT_NOFILE, 65536))
		return 0;
	return !setgroups(0, 0) && !setresgid(WORKER, WORKER, WORKER) &&
	       !setresuid(WORKER, WORKER, WORKER) && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

/* The measured application disk says what is started: one argument a line. */
static void read_command(char *command[MAX_ARGUMENTS + 1])
{
	static char text[4096];
	char *rest = text;
	int count = 0;
	read_text("/application/command", text, sizeof text);
	for (char *line; (line = strsep(&rest, "\n"));) {
		if (!*line || count == MAX_ARGUMENTS)
			halt("the worker's command is empty, or too long");
		command[count++] = line;
	}
	command[count] = 0;
}

static _Noreturn void become_worker(char *const command[])
{
	static char *const environment[] = {"PATH=/usr/bin:/usr/sbin", "LANG=C.UTF-8",
					    "HOME=/run/cloister", "TMPDIR=/run/cloister", 0};
	int console = open("/dev/console", O_WRONLY | O_NOCTTY), nothing = open("/dev/null", O_RDONLY);
	setsid();
	dup2(nothing, 0);
	dup2(console >= 0 ? console : nothing, 1);
	dup2(1, 2);
	for (int file = 3; file < 64; file++)
		close(file);
	umask(077);
	if (gives_up_rights())
		execve(command[0], command, environment);
	_exit(127); /* which PID 1 sees */
}

_Noreturn void run_worker(void)
{
	char *command[MAX_ARGUMENTS + 1];
	int status = 0;
	read_command(command);
	if (mkdir(PRIVATE_DIRECTORY, 0700))
		halt(PRIVATE_DIRECTORY);
	copy_boot_log();
	give(PRIVATE_DIRECTORY);
	give("/dev/tpmrm0");
	/* A NitroTPM is asked for documents past the kernel's resource manager. */
	give("/dev/tpm0");
	give("/dev/sev-guest");
	give("/dev/tdx_guest");
	give("/dev/nsm");
	give(TDX_LOG);
	give_report_entry();
	give_ports();
	if (!is_enclave() && copy_start_disk(START, !access(PORTS "/cloister.operator", F_OK)))
		give(START);
	say("worker");
	pid_t worker = fork(), ended;
	if (worker == 0)
		become_worker(command);
	if (worker < 0)
		halt("no process for the worker");
	/* Whose parents died are ours to bury. */
	while ((ended = waitpid(-1, &status, 0)) != worker)
		if (ended < 0 && errno != EINTR)
			halt("nothing to wait for");
	say("the worker ended with status 0x%x", (unsigned)status);
	halt("the worker ended");
}
