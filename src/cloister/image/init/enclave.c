/* A Nitro enclave: no disk and no card, a security module, and a parent on vsock.

   All that the image holds comes in its ramdisks, which PCR0 to PCR2 cover whole. The root is
   one file there, under dm-verity like the root of every other image; what the application and
   the model are made of lies there as it is, so that a model is in memory once. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <linux/random.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define MODULE "/dev/nsm"
#define FAMILY_VSOCK 40 /* AF_VSOCK; not every C library's headers have it */
#define PARENT 3
#define HEARTBEAT_PORT 9000
#define HEARTBEAT 0xB7 /* aws-nitro-enclaves-sdk-bootstrap, init/init.c */
#define PARENT_S 20    /* within which the parent has to answer */
#define RAMDISK "/ramdisk"
#define ENTROPY 256 /* bytes; the module gives as many at a time */

/* struct sockaddr_vm of linux/vm_sockets.h, which needs headers that clash with some libraries'. */
struct vsock_address {
	unsigned short family;
	unsigned short zero;
	unsigned int port;
	unsigned int cid;
	unsigned char rest[4];
};

int is_enclave(void)
{
	return !access(MODULE, F_OK);
}

/* The hypervisor takes an enclave that does not say this to its parent for one that failed. */
void tell_parent(void)
{
	struct vsock_address parent = {
		.family = FAMILY_VSOCK, .port = HEARTBEAT_PORT, .cid = PARENT};
	struct timeval limit = {.tv_sec = PARENT_S};
	unsigned char beat = HEARTBEAT;
	int talk = socket(FAMILY_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (talk < 0 || setsockopt(talk, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit))
		halt("there is no vsock to the parent");
	if (connect(talk, (struct sockaddr *)&parent, sizeof parent))
		halt("the parent does not wait for the enclave");
	if (write(talk, &beat, 1) != 1 || read(talk, &beat, 1) != 1 || beat != HEARTBEAT)
		halt("the parent does not answer the enclave");
	close(talk);
	say("heartbeat");
}

/* The kernel takes from the module too, but when it likes: nothing here runs before it did. */
void add_entropy(void)
{
	struct {
		struct rand_pool_info head;
		unsigned char bytes[ENTROPY];
	} pool = {.head = {.entropy_count = ENTROPY * 8, .buf_size = ENTROPY}};
	char source[64];
	size_t used = 0;
	ssize_t got;
	read_text("/sys/class/misc/hw_random/rng_current", source, sizeof source);
	if (strcmp(source, "nsm-hwrng"))
		halt("the random numbers are not the security module's");
	int from = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
	while (from >= 0 && used < ENTROPY &&
	       (got = read(from, pool.bytes + used, ENTROPY - used)) > 0)
		used += (size_t)got;
	int to = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
	if (used < ENTROPY || to < 0 || ioctl(to, RNDADDENTROPY, &pool))
		halt("the security module gives no random numbers");
	memset(&pool, 0, sizeof pool);
	close(from);
	close(to);
}

/* Makes FILE of the ramdisk a read-only block device, for whoever looks for its footer. */
void attach_ramdisk(const char *file)
{
	char path[128];
	struct loop_config setup = {.info = {.lo_flags = LO_FLAGS_READ_ONLY}};
	snprintf(path, sizeof path, RAMDISK "/%s", file);
	int backing = open(path, O_RDONLY | O_CLOEXEC);
	if (backing < 0)
		halt(path);
	int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
	snprintf(path, sizeof path, "/dev/loop%d", number);
	int device = number < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC);
	setup.fd = (unsigned)backing;
	if (device < 0 || ioctl(device, LOOP_CONFIGURE, &setup))
		halt("a file of the ramdisk does not become a device");
	close(device);
	close(control);
	close(backing);
}

/* Shows a folder of the ramdisk at WHERE. Its files are root's, and who runs later is not. */
void mount_from_ramdisk(const char *name, const char *where, unsigned long flags)
{
	char path[128];
	struct stat found;
	snprintf(path, sizeof path, RAMDISK "/%s", name);
	if (lstat(path, &found) || !S_ISDIR(found.st_mode))
		halt(path);
	if (mount(path, where, 0, MS_BIND, 0) ||
	    mount(0, where, 0, MS_BIND | MS_REMOUNT | flags, 0))
		halt(where);
}
