/* Finds disks by what stands at their end, and believes none of it: a footer only says what
   dm-verity will check, and is measured, or equals what the measured command line says. */
#define _GNU_SOURCE
#include "init.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define MAX_BLOCKS (1ULL << 40)

static int is_hex(const char *text, size_t length)
{
	size_t i = 0;
	while (i < length && (isdigit((unsigned char)text[i]) || (text[i] >= 'a' && text[i] <= 'f')))
		i++;
	return i == length && text[length] == 0;
}

/* A number as it is written without signs, spaces or leading zeros. */
int read_number(const char *text, unsigned long long *value)
{
	char again[24], *end;
	if (!isdigit((unsigned char)text[0]))
		return 0;
	errno = 0;
	*value = strtoull(text, &end, 10);
	snprintf(again, sizeof again, "%llu", *value);
	return !errno && !*end && !strcmp(again, text) && *value <= MAX_BLOCKS;
}

/* Five fields, with SEPARATOR between them; false unless every one is as it must be. */
static int read_fields(const char *text, const char *separator, struct disk *disk)
{
	char copy[SPEC_TEXT], *field[5], *rest = copy;
	if (strlen(text) >= sizeof copy)
		return 0;
	strcpy(copy, text);
	for (int i = 0; i < 5; i++)
		if (!(field[i] = strsep(&rest, separator)))
			return 0;
	if (rest || (strcmp(field[0], "squashfs") && strcmp(field[0], "erofs")))
		return 0;
	if (!read_number(field[1], &disk->data_blocks) ||
	    !read_number(field[2], &disk->hash_start))
		return 0;
	if (!disk->data_blocks || disk->hash_start < disk->data_blocks)
		return 0;
	if (!is_hex(field[3], 64) || !is_hex(field[4], 64))
		return 0;
	strcpy(disk->fs, field[0]);
	strcpy(disk->root_hash, field[3]);
	strcpy(disk->salt, field[4]);
	return 1;
}

/* FS:DATA_BLOCKS:HASH_START:ROOT_HASH:SALT of the command line. */
void parse_spec(const char *kind, const char *text, struct disk *disk)
{
	memset(disk, 0, sizeof *disk);
	snprintf(disk->kind, sizeof disk->kind, "%s", kind);
	if (!read_fields(text, ":", disk))
		halt("the command line describes a disk in a way that is not known");
}

/* Reads the last block of DEVICE; its line goes to LINE. False where that is no footer. */
int footer_of(const char *device, struct disk *disk, char *line, size_t size)
{
	static char block[BLOCK + 1];
	unsigned long long bytes = 0;
	memset(disk, 0, sizeof *disk);
	int file = open(device, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return 0;
	int got = !ioctl(file, BLKGETSIZE64, &bytes) && bytes >= 2 * BLOCK && bytes % 512 == 0 &&
		  pread(file, block, BLOCK, (off_t)(bytes - BLOCK)) == BLOCK;
	close(file);
	if (!got || strncmp(block, "cloister-disk/1 ", 16))
		return 0;
	block[BLOCK] = 0;
	size_t length = strcspn(block, "\n");
	if (length + 1 >= size || block[length] != '\n')
		return 0;
	for (size_t i = length + 1; i < BLOCK; i++)
		if (block[i])
			return 0; /* what is not measured is not there either */
	memcpy(line, block, length + 1);
	line[length + 1] = 0;
	block[length] = 0;
	char *kind = block + 16, *fields = strchr(kind, ' ');
	if (!fields || (size_t)(fields - kind) >= sizeof disk->kind)
		return 0;
	*fields++ = 0;
	strcpy(disk->kind, kind);
	return read_fields(fields, " ", disk);
}

/* Calls VISIT with the path of every block device, partitions included; counts the trues. */
int each_device(int (*visit)(const char *device, void *state), void *state)
{
	int hits = 0;
	DIR *directory = opendir("/sys/class/block");
	if (!directory)
		halt("/sys/class/block");
	for (struct dirent *entry; (entry = readdir(directory));) {
		char device[64];
		if (entry->d_name[0] == '.' || !strncmp(entry->d_name, "dm-", 3) ||
		    strlen(entry->d_name) > 40)
			continue;
		snprintf(device, sizeof device, "/dev/%.40s", entry->d_name);
		hits += visit(device, state);
	}
	closedir(directory);
	return hits;
}

static int make_read_only(const char *device, void *state)
{
	int on = 1, file = open(device, O_RDONLY | O_CLOEXEC);
	(void)state;
	if (file >= 0) {
		ioctl(file, BLKROSET, &on); /* a second lock: nobody but root may open it at all */
		close(file);
	}
	return 0;
}

void protect_block_devices(void)
{
	each_device(make_read_only, 0);
}

struct search {
	const char *kind;
	const struct disk *wanted;
	struct disk disk;
	char line[SPEC_TEXT];
	char device[64];
};

static int matches(const char *device, void *state)
{
	struct search *search = state;
	struct disk disk;
	char line[SPEC_TEXT];
	if (!footer_of(device, &disk, line, sizeof line) || strcmp(disk.kind, search->kind))
		return 0;
	if (search->wanted && memcmp(&disk, search->wanted, sizeof disk))
		return 0;
	search->disk = disk;
	strcpy(search->line, line);
	strcpy(search->device, device);
	return 1;
}

static int wait_for(struct search *search)
{
	struct timespec pause_time = {0, 10000000};
	int found = 0;
	for (int i = 0; i < WAIT_TRIES && !(found = each_device(matches, search)); i++)
		nanosleep(&pause_time, 0);
	protect_block_devices(); /* those too that came late */
	return found;
}

/* Any disk that says it is the wanted one will do: dm-verity makes it so, or stops. */
void find_pinned(const struct disk *wanted, char *device, size_t size)
{
	struct search search = {.kind = wanted->kind, .wanted = wanted};
	if (!wait_for(&search))
		halt("a disk that the command line names is missing");
	snprintf(device, size, "%s", search.device);
}

void find_only(const char *kind, struct disk *disk, char *line, char *device, size_t size)
{
	struct search search = {.kind = kind};
	int found = wait_for(&search);
	if (found != 1)
		halt(found ? "two disks of one kind" : "a disk is missing");
	*disk = search.disk;
	strcpy(line, search.line);
	snprintf(device, size, "%s", search.device);
}
