/* The kernel's modules: those of the initrd that this machine has something for, in order.

   What is not there is not driven: each module is a signature to check, and a driver that the
   machine could later find a device for. The kernel has looked for devices on these buses before
   it started the init; on others it may still be looking, so their modules are always loaded. */
#define _GNU_SOURCE
#include "init.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FOLDER "/modules"

/* Adds what FILE says to NAMES, of SIZE bytes with USED filled; each name ends with a zero. */
static size_t add_name(const char *path, char *names, size_t used, size_t size)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return used; /* a device without a name */
	ssize_t got = read(file, names + used, size - used);
	close(file);
	if (got <= 0)
		return used;
	if ((size_t)got >= size - used - 1)
		halt("more devices than the init can list");
	size_t end = used + (size_t)got;
	while (end > used && names[end - 1] == '\n')
		end--;
	names[end] = 0;
	return end > used ? end + 1 : used;
}

/* What the machine has, as the kernel names it (modalias): each name ends with a zero, and the
   last with one more. */
void list_hardware(const char *sysfs, char *names, size_t size)
{
	static const char *const buses[] = {"acpi", "pci", "platform", "virtio"};
	char path[512];
	size_t used = 0;
	for (size_t i = 0; i < sizeof buses / sizeof *buses; i++) {
		snprintf(path, sizeof path, "%s/bus/%s/devices", sysfs, buses[i]);
		DIR *folder = opendir(path);
		if (!folder)
			continue;
		for (struct dirent *one; (one = readdir(folder));) {
			if (one->d_name[0] == '.')
				continue;
			snprintf(path, sizeof path, "%s/bus/%s/devices/%s/modalias", sysfs,
				 buses[i], one->d_name);
			used = add_name(path, names, used, size);
		}
		closedir(folder);
	}
	snprintf(path, sizeof path, "%s/devices/system/cpu/modalias", sysfs);
	used = add_name(path, names, used, size);
	names[used] = 0;
}

/* Whether the machine has one of what PATTERNS, words, are for. */
int has_hardware(const char *names, char *patterns)
{
	char *rest = patterns;
	for (char *pattern; (pattern = strtok_r(rest, " ", &rest));)
		for (const char *name = names; *name; name += strlen(name) + 1)
			if (!fnmatch(pattern, name, 0))
				return 1;
	return 0;
}

static void load_module(const char *name)
{
	char path[320];
	snprintf(path, sizeof path, FOLDER "/%s", name);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		halt(path);
	/* ENODEV: a driver for hardware that this machine does not have; ENOENT: one that needs such
	   a driver. What is missing then is missed by what needs it. */
	if (syscall(SYS_finit_module, file, "", 0) && errno != EEXIST && errno != ENODEV &&
	    errno != ENOENT)
		halt(path);
	close(file);
}

/* /modules/list names a file a line, in the order in which they are loaded, and behind it what it
   is for; a file alone is for every machine. */
void load_modules(void)
{
	static char list[65536], names[1 << 20];
	int loaded = 0, skipped = 0;
	read_text(FOLDER "/list", list, sizeof list);
	list_hardware("/sys", names, sizeof names);
	char *rest = list;
	for (char *line; (line = strtok_r(rest, "\n", &rest));) {
		char *patterns = strchr(line, ' ');
		if (patterns)
			*patterns++ = 0;
		if (patterns && !has_hardware(names, patterns)) {
			skipped++;
			continue;
		}
		load_module(line);
		loaded++;
	}
	write_text("/proc/sys/kernel/modules_disabled", "1");
	say("%d modules, and no more; %d for what is not here", loaded, skipped);
}
