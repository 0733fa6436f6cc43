/* dm-verity by its ioctls (Linux include/uapi/linux/dm-ioctl.h, interface 4;
   Documentation/admin-guide/device-mapper/verity.rst). */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

static union {
	struct dm_ioctl head;
	char bytes[4096];
} request;

static void prepare(const char *name)
{
	memset(&request, 0, sizeof request);
	request.head.version[0] = 4;
	request.head.data_size = sizeof request;
	request.head.data_start = sizeof request.head;
	request.head.flags = DM_READONLY_FLAG;
	strncpy(request.head.name, name, sizeof request.head.name - 1);
}

/* Loads a table of one target: the disk's data under its own hash tree, both on DEVICE. */
static void load_table(int control, const struct disk *disk, const char *device)
{
	prepare(disk->kind);
	request.head.target_count = 1;
	struct dm_target_spec *target = (void *)(request.bytes + sizeof request.head);
	target->length = disk->data_blocks * (BLOCK / 512);
	strcpy(target->target_type, "verity");
	/* Version 1, both block sizes, and that a wrong block is a panic and no mere error. */
	snprintf((char *)(target + 1), 1024,
		 "1 %s %s %d %d %llu %llu sha256 %s %s 1 panic_on_corruption", device, device, BLOCK,
		 BLOCK, disk->data_blocks, disk->hash_start, disk->root_hash, disk->salt);
	if (ioctl(control, DM_TABLE_LOAD, &request))
		halt("dm-verity takes no such disk");
}

void mount_verified(const struct disk *disk, const char *device, const char *where,
		    unsigned long flags)
{
	char mapped[64];
	struct timespec pause_time = {0, 5000000};
	int control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		halt("/dev/mapper/control");
	prepare(disk->kind);
	if (ioctl(control, DM_DEV_CREATE, &request))
		halt("no device for dm-verity");
	snprintf(mapped, sizeof mapped, "/dev/dm-%u", minor(request.head.dev));
	load_table(control, disk, device);
	prepare(disk->kind);
	if (ioctl(control, DM_DEV_SUSPEND, &request)) /* without its flag: resume */
		halt("dm-verity does not start");
	close(control);
	for (int i = 0; i < 1000 && access(mapped, F_OK); i++)
		nanosleep(&pause_time, 0);
	if (mount(mapped, where, disk->fs, flags, 0))
		halt(where);
}
