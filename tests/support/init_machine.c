/* The guest's init whole, on a machine of files: what it asks of the kernel is written down, a line
   each on standard output, and changes nothing. One of them, by its number, may fail.

   ROOT holds what the guest would see: devices are files, and what is written to them is told. */
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/random.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <net/route.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#undef main
#undef getpid
#undef open
#undef read
#undef pread
#undef write
#undef close
#undef access
#undef lstat
#undef opendir
#undef fork
#undef _exit
#undef waitpid
int open(const char *path, int flags, ...);
ssize_t read(int file, void *data, size_t size);
ssize_t pread(int file, void *data, size_t size, off_t at);
ssize_t write(int file, const void *data, size_t size);
int close(int file);
int access(const char *path, int mode);
int lstat(const char *path, struct stat *found);
DIR *opendir(const char *path);
pid_t fork(void);
_Noreturn void _exit(int status);
pid_t waitpid(pid_t child, int *status, int options);
int init_main(void);

#ifdef __GLIBC__
typedef unsigned long request_number;
#else
typedef int request_number;
#endif

#define LINES 1
#define LAST_CAPABILITY 40 /* of the kernel that stands for the guest's */

static const char *root;
static int *lines, failing = -1, error, short_by, child, switched, created;
static char names[256][256]; /* of what is open */

/* Writes a line down; true where what it tells of fails. */
static int told(const char *format, ...)
{
	char text[8192];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	dprintf(LINES, "%s%s\n", child ? "child: " : "", text);
	errno = error;
	return (*lines)++ == failing;
}

static const char *within(const char *path)
{
	static char file[4096];
	static const char *const moved[] = {"/proc/", "/sys/", "/dev/", "/run/", 0};
	const char *new_root = switched ? "/sysroot" : "";
	for (int i = 0; moved[i]; i++)
		if (!strncmp(path, moved[i], strlen(moved[i])))
			new_root = "";
	snprintf(file, sizeof file, "%s%s%s", root, new_root, path);
	return file;
}

static const char *hex(const void *data, size_t size)
{
	static char text[2][4096];
	static int turn;
	char *here = text[turn = !turn];
	here[0] = 0;
	for (size_t i = 0; i < size && 2 * i + 2 < sizeof text[0]; i++)
		sprintf(here + 2 * i, "%02x", ((const unsigned char *)data)[i]);
	return here;
}

static int named(int file, const char *name)
{
	snprintf(names[file], sizeof names[file], "%s", name);
	return file;
}

static int is(int file, const char *name)
{
	return file >= 0 && !strcmp(names[file], name);
}

pid_t first_process(void) { return 1; }

int opened(const char *path, int flags, ...)
{
	int made = flags & O_CREAT ? O_CREAT : 0, mode = 0, writes = (flags & O_ACCMODE) != O_RDONLY;
	va_list rest;
	va_start(rest, flags);
	mode = made ? va_arg(rest, int) : 0;
	va_end(rest);
	if (!strcmp(path, "/dev/console"))
		return named(open("/dev/null", O_WRONLY), path);
	char how[64] = "read";
	if (writes)
		snprintf(how, sizeof how, made ? "new%s %04o" : "write",
			 flags & O_EXCL ? "" : " or old", (unsigned)mode);
	if (told("open %s %s%s", path, how, child || flags & O_CLOEXEC ? "" : " inherited"))
		return -1;
	int file, is_there = made || !strncmp(path, "/proc/sys/", 10) || !access(within(path), F_OK);
	if (!is_there)
		return -1;
	file = writes ? open("/dev/null", O_RDWR) : open(within(path), O_RDONLY);
	return file < 0 ? -1 : named(file, path);
}

/* The SIZE next bytes of the file NAME, whose first are what a device says first. */
static ssize_t said(const char *name, void *data, size_t size, size_t *from)
{
	int file = open(within(name), O_RDONLY);
	ssize_t got = file < 0 ? 0 : pread(file, data, size, (off_t)*from);
	if (file >= 0)
		close(file);
	*from += got > 0 ? (size_t)got : 0;
	return got;
}

ssize_t read_from(int file, void *data, size_t size)
{
	static size_t answered, heard;
	static const unsigned char success[10] = {0x80, 0x01, 0, 0, 0, 10};
	if (told("read %s", names[file]))
		return short_by ? 0 : -1;
	if (is(file, "/dev/tpm0")) {
		ssize_t got = said("/dev/tpm0", data, 10, &answered);
		if (got <= 0)
			memcpy(data, success, got = sizeof success);
		return got;
	}
	if (is(file, "socket"))
		return said("/dev/parent", data, size, &heard);
	return read(file, data, size);
}

ssize_t read_at(int file, void *data, size_t size, off_t at)
{
	if (told("read %s", names[file]))
		return short_by ? (ssize_t)size - 1 : -1;
	return pread(file, data, size, at);
}

ssize_t written(int file, const void *data, size_t size)
{
	const char *name = names[file];
	int fails;
	if (is(file, "/dev/console")) {
		const char *text = strstr(data, "] ");
		told("say %.*s", (int)strcspn(text, "\n") - 2, text + 2);
		return (ssize_t)size;
	}
	if (!strncmp(name, "/proc/", 6))
		fails = told("write %s %.*s", name, (int)size, (const char *)data);
	else
		fails = told("write %s %s", name, size <= 2048 ? hex(data, size) : "much");
	if (fails)
		return short_by ? (ssize_t)size - 1 : -1;
	return (ssize_t)size;
}

int closed(int file)
{
	if (child) {
		told("close %d", file);
		return 0;
	}
	return close(file);
}

int reached(const char *path, int mode) { return access(within(path), mode); }

int looked_at(const char *path, struct stat *found)
{
	return told("lstat %s", path) ? -1 : lstat(within(path), found);
}

DIR *listed(const char *path) { return told("list %s", path) ? 0 : opendir(within(path)); }

int slept(const void *time, void *rest)
{
	(void)time; (void)rest;
	return 0;
}
unsigned sleeps(unsigned seconds) { return seconds - seconds; }
int paused(void) { _exit(4); }

int made(const char *path, mode_t mode) { return told("mkdir %s %04o", path, mode) ? -1 : 0; }

int linked(const char *to, const char *path) { return told("link %s %s", path, to) ? -1 : 0; }

int owned(const char *path, uid_t user, gid_t group)
{
	if (access(within(path), F_OK)) {
		errno = ENOENT;
		return -1;
	}
	return told("give %s %u %u", path, user, group) ? -1 : 0;
}

int mounted(const char *what, const char *where, const char *type, unsigned long flags,
	    const void *options)
{
	static const struct { unsigned long flag; const char *name; } words[] = {
		{MS_RDONLY, "ro"}, {MS_NOSUID, "nosuid"}, {MS_NODEV, "nodev"}, {MS_NOEXEC, "noexec"},
		{MS_BIND, "bind"}, {MS_REMOUNT, "remount"}, {MS_MOVE, "move"}};
	char said[256] = "";
	for (size_t i = 0; i < sizeof words / sizeof *words; i++)
		if (flags & words[i].flag) {
			sprintf(said + strlen(said), "%s%s", *said ? "," : "", words[i].name);
			flags &= ~words[i].flag;
		}
	if (flags)
		sprintf(said + strlen(said), ",%lx", flags);
	return told("mount %s %s %s %s%s%s", what ? what : "-", where, type ? type : "-",
		    *said ? said : "-", options ? " " : "", options ? (const char *)options : "")
		       ? -1 : 0;
}

int asked(int file, request_number request, ...)
{
	struct stat found;
	va_list rest;
	va_start(rest, request);
	void *argument = va_arg(rest, void *);
	va_end(rest);
	struct dm_ioctl *dm = argument;
	struct ifreq *card = argument;
	switch ((unsigned)request) {
	case BLKGETSIZE64:
		if (fstat(file, &found))
			return -1;
		memcpy(argument, &(unsigned long long){(unsigned long long)found.st_size}, 8);
		return 0;
	case BLKROSET:
		return told("read-only %s %d", names[file], *(int *)argument) ? -1 : 0;
	case (unsigned)DM_DEV_CREATE:
		dm->dev = created++;
		return told("verity create %s %s", dm->name,
			    dm->flags == DM_READONLY_FLAG ? "ro" : "rw") ? -1 : 0;
	case (unsigned)DM_TABLE_LOAD: {
		struct dm_target_spec *target = (void *)((char *)dm + dm->data_start);
		return told("verity load %s %s %u %llu %llu %s %s", dm->name,
			    dm->flags == DM_READONLY_FLAG ? "ro" : "rw", dm->target_count,
			    (unsigned long long)target->sector_start,
			    (unsigned long long)target->length, target->target_type,
			    (char *)(target + 1)) ? -1 : 0;
	}
	case (unsigned)DM_DEV_SUSPEND:
		return told("verity start %s %s", dm->name,
			    dm->flags == DM_READONLY_FLAG ? "ro" : "rw") ? -1 : 0;
	case LOOP_CTL_GET_FREE:
		return told("loop free") ? -1 : 0;
	case LOOP_CONFIGURE: {
		struct loop_config *loop = argument;
		return told("loop %s %s%s", names[file], names[loop->fd],
			    loop->info.lo_flags == LO_FLAGS_READ_ONLY ? " ro" : "") ? -1 : 0;
	}
	case RNDADDENTROPY: {
		struct rand_pool_info *pool = argument;
		return told("entropy %d bits %s", pool->entropy_count,
			    hex(pool->buf, (size_t)pool->buf_size)) ? -1 : 0;
	}
	case SIOCGIFFLAGS:
		card->ifr_flags = 0;
		return told("flags of %s", card->ifr_name) ? -1 : 0;
	case SIOCSIFFLAGS:
		return told("flags of %s %x", card->ifr_name, (unsigned)card->ifr_flags) ? -1 : 0;
	case SIOCSIFADDR:
		return told("address %s %s", card->ifr_name, hex(&card->ifr_addr, 8)) ? -1 : 0;
	case SIOCSIFNETMASK:
		return told("mask %s %s", card->ifr_name, hex(&card->ifr_netmask, 8)) ? -1 : 0;
	case SIOCADDRT:
		return told("route %s%s%s", ((struct rtentry *)argument)->rt_flags & RTF_UP ? "up " : "",
			    ((struct rtentry *)argument)->rt_flags & RTF_GATEWAY ? "through " : "",
			    hex((char *)argument + 8, 48)) ? -1 : 0;
	default:
		return told("ioctl %lx", (unsigned long)request) ? -1 : 0;
	}
}

int talks(int family, int type, int protocol)
{
	(void)protocol;
	if (told("socket %d%s", family, type & SOCK_CLOEXEC ? "" : " inherited"))
		return -1;
	return named(open("/dev/null", O_RDWR), "socket");
}

int with_option(int file, int level, int option, const void *value, socklen_t size)
{
	(void)file; (void)level; (void)option;
	return told("socket option %s", hex(value, size)) ? -1 : 0;
}

int connected(int file, const struct sockaddr *to, socklen_t size)
{
	(void)file;
	return told("connect %s", hex(to, size)) ? -1 : 0;
}

long called(long number, ...)
{
	int file;
	va_list rest;
	va_start(rest, number);
	file = va_arg(rest, int);
	va_end(rest);
	return told("load %s", names[file]) ? -1 : 0;
}

pid_t forked(void)
{
	if (told("fork"))
		return -1;
	pid_t made = fork();
	child = !made;
	return made;
}

pid_t waited(pid_t which, int *status, int options)
{
	siginfo_t over;
	/* Told when it is over: lines of a process and of its child never mix. */
	if (waitid(which < 0 ? P_ALL : P_PID, which < 0 ? 0 : (id_t)which, &over, WEXITED | WNOWAIT))
		return -1;
	return told("wait") ? -1 : waitpid(which, status, options);
}

int executed(const char *program, char *const arguments[], char *const environment[])
{
	char text[4096];
	size_t used = (size_t)snprintf(text, sizeof text, "exec %s", program);
	for (int i = 0; arguments[i]; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, " %s", arguments[i]);
	used += (size_t)snprintf(text + used, sizeof text - used, " |");
	for (int i = 0; environment[i]; i++)
		used += (size_t)snprintf(text + used, sizeof text - used, " %s", environment[i]);
	if (told("%s", text))
		return -1;
	_exit(access(within("/refuses"), F_OK) ? 0 : 1);
}

_Noreturn void left(int status)
{
	told("exit %d", status);
	_exit(status);
}

int restarted(int how)
{
	told("reboot %x", (unsigned)how);
	_exit(3);
}

int moved_to(const char *path) { return told("chdir %s", path) ? -1 : 0; }

int rooted(const char *path)
{
	if (told("chroot %s", path))
		return -1;
	switched = 1;
	return 0;
}

mode_t masked(mode_t mask)
{
	told("umask %04o", mask);
	return 0;
}

pid_t with_session(void) { return told("setsid") ? -1 : 1; }

int moved_file(int from, int to)
{
	told("dup2 %s %d", from < 0 ? "-" : names[from], to);
	return to;
}

int ruled(int option, ...)
{
	va_list rest;
	va_start(rest, option);
	unsigned long value = va_arg(rest, unsigned long);
	va_end(rest);
	if (told("prctl %d %lu", option, value & 0xffffffff))
		return -1;
	errno = EINVAL;
	return option == 24 /* PR_CAPBSET_DROP */ && (int)value > LAST_CAPABILITY ? -1 : 0;
}

int limited(int resource, const struct rlimit *limit)
{
	return told("limit %d %lld %lld", resource, (long long)limit->rlim_cur,
		    (long long)limit->rlim_max) ? -1 : 0;
}

int grouped(size_t count, const gid_t *groups)
{
	(void)groups;
	return told("setgroups %zu", count) ? -1 : 0;
}

int group_set(gid_t real, gid_t effective, gid_t saved)
{
	return told("setresgid %u %u %u", real, effective, saved) ? -1 : 0;
}

int user_set(uid_t real, uid_t effective, uid_t saved)
{
	return told("setresuid %u %u %u", real, effective, saved) ? -1 : 0;
}

/* ROOT [LINE ERRNO]; ERRNO 0: the call does a byte less than it was asked for. */
int main(int count, char **arguments)
{
	if (count != 2 && count != 4)
		return 9;
	lines = mmap(0, sizeof *lines, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	root = arguments[1];
	if (count == 4) {
		failing = atoi(arguments[2]);
		error = atoi(arguments[3]);
		short_by = !error;
	}
	return init_main();
}
