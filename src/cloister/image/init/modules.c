/* The kernel's modules: those of the initrd that this machine has something for, in order.

   What is not there is not driven: each module is a signature to check, and code that a device could
   use. A host that wants one loaded shows its device at the start; later there is none to load. The
   kernel has looked for devices on these buses before it started the init, or looks while a module
   is loaded; on others it may still be looking, so their modules are loaded with the bus. */
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

/* Whether one of NAMES is what PATTERNS, words, are for. */
int has_hardware(const char *names, const char *patterns)
{
	char pattern[256];
	for (size_t word; (patterns += strspn(patterns, " "), *patterns); patterns += word) {
		word = strcspn(patterns, " ");
		if (word >= sizeof pattern)
			halt("a device's name is too long");
		memcpy(pattern, patterns, word);
		pattern[word] = 0;
		for (const char *name = names; *name; name += strlen(name) + 1)
			if (!fnmatch(pattern, name, 0))
				return 1;
	}
	return 0;
}

/* Whether this machine has one now. Only who finds nothing looks again, for a module that was loaded
   since may have brought devices of its own: a bus. */
static int is_here(const char *patterns, int *looked)
{
	static char names[1 << 20];
	if (*names && has_hardware(names, patterns))
		return 1;
	if (*looked)
		return 0;
	list_hardware("/sys", names, sizeof names);
	*looked = 1;
	return has_hardware(names, patterns);
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
	static char list[65536];
	int loaded = 0, skipped = 0, looked = 0;
	read_text(FOLDER "/list", list, sizeof list);
	char *rest = list;
	for (char *line; (line = strtok_r(rest, "\n", &rest));) {
		char *patterns = strchr(line, ' ');
		if (patterns)
			*patterns++ = 0;
		if (patterns && !is_here(patterns, &looked)) {
			skipped++;
			continue;
		}
		load_module(line);
		looked = 0;
		loaded++;
	}
	write_text("/proc/sys/kernel/modules_disabled", "1");
	say("%d modules, and no more; %d for what is not here", loaded, skipped);
}
