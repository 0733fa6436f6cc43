/* The start disk, on machines where nobody holds an operator's port: who is served, and under
   which manifest (src/cloister/attester/start_disk.py). Found by its first block, for clouds make
   disks larger than what is put on them. It is the host's word, as the port's is: copied into
   memory within a bound, and decoded by the worker, who has no rights. */
#define _GNU_SOURCE
#include "init.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "cloister-start/1 "
#define MAX_DOCUMENT (2 * 1024 * 1024 + BLOCK) /* as MAX_DOCUMENT_BYTES there */

struct start {
	char device[64];
	unsigned long long size; /* of header and document */
};

/* Every disk that begins with the magic counts: one that is cut off or of another form ends the
   guest with that reason, and not as if there were none. */
static int visit(const char *device, void *state)
{
	static char block[BLOCK + 1];
	struct start *start = state;
	int file = open(device, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return 0;
	ssize_t got = pread(file, block, BLOCK, 0);
	close(file);
	if (got != BLOCK || strncmp(block, MAGIC, sizeof MAGIC - 1))
		return 0;
	block[BLOCK] = 0;
	char *size = block + sizeof MAGIC - 1, *end = strchr(size, ' ');
	if (!end)
		halt("the start disk begins with no header");
	*end = 0;
	if (!read_number(size, &start->size) || !start->size || start->size > MAX_DOCUMENT)
		halt("the start disk says no size that is accepted");
	start->size += BLOCK;
	snprintf(start->device, sizeof start->device, "%s", device);
	return 1;
}

static void copy(const struct start *start, const char *where)
{
	static char piece[65536];
	int from = open(start->device, O_RDONLY | O_CLOEXEC);
	int to = open(where, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0400);
	if (from < 0 || to < 0)
		halt("the start disk cannot be copied");
	for (unsigned long long at = 0; at < start->size;) {
		unsigned long long left = start->size - at;
		size_t wanted = left < sizeof piece ? (size_t)left : sizeof piece;
		ssize_t got = pread(from, piece, wanted, (off_t)at);
		if (got <= 0)
			halt("the start disk is cut off");
		if (write(to, piece, (size_t)got) != got)
			halt("the start disk cannot be copied");
		at += (unsigned long long)got;
	}
	close(from);
	close(to);
}

/* Copies the one start disk to WHERE. False where there is none; a machine with an operator's port
   is not waited for, as it has another way to say the same. */
int copy_start_disk(const char *where, int has_port)
{
	struct start start = {.size = 0};
	struct timespec pause_time = {0, 10000000};
	int found = each_device(visit, &start);
	for (int i = 0; !found && !has_port && i < WAIT_TRIES; i++) {
		nanosleep(&pause_time, 0);
		found = each_device(visit, &start);
	}
	protect_block_devices(); /* those too that came late */
	if (found > 1)
		halt("two start disks");
	if (!found)
		return 0;
	copy(&start, where);
	say("start disk on %s", start.device);
	return 1;
}
