/* One command of a TPM: TPM2_PCR_Event hashes its data and extends the digest in every bank
   (TCG "TPM 2.0 Library", revision 01.59, Part 3 section 22.3). So there is no hash in here. */
#define _GNU_SOURCE
#include "init.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEVICE "/dev/tpm0"
#define MAX_EVENT 1024 /* TPM2B_EVENT, Part 2 section 10.9.2 */
#define RETRY 0x922
#define YIELDED 0x908
#define TESTING 0x90A

int has_tpm(void)
{
	return !access(DEVICE, F_OK);
}

static unsigned char *put(unsigned char *at, unsigned long value, int size)
{
	for (int i = size - 1; i >= 0; i--)
		*at++ = (unsigned char)(value >> (8 * i));
	return at;
}

static unsigned long run(const unsigned char *command, size_t size)
{
	unsigned char answer[4096];
	int device = open(DEVICE, O_RDWR | O_CLOEXEC);
	if (device < 0 || write(device, command, size) != (ssize_t)size)
		halt("the TPM takes no command");
	ssize_t got = read(device, answer, sizeof answer);
	close(device);
	if (got < 10)
		halt("the TPM gives no answer");
	return (unsigned long)answer[6] << 24 | answer[7] << 16 | answer[8] << 8 | answer[9];
}

void measure(unsigned pcr, const void *data, size_t size)
{
	unsigned char command[64 + MAX_EVENT], *at = command;
	struct timespec pause_time = {0, 5000000};
	unsigned long code = 0;
	if (size > MAX_EVENT)
		halt("too much for one measurement");
	at = put(at, 0x8002, 2); /* TPM_ST_SESSIONS */
	at = put(at, 10 + 4 + 4 + 9 + 2 + size, 4);
	at = put(at, 0x13C, 4); /* TPM_CC_PCR_Event */
	at = put(at, pcr, 4);
	at = put(at, 9, 4); /* bytes of authorisation: a password, which is empty */
	at = put(at, 0x40000009, 4);
	at = put(at, 0, 5);
	at = put(at, size, 2);
	memcpy(at, data, size);
	for (int i = 0; i < 1000; i++) {
		code = run(command, (size_t)(at - command) + size);
		if (code != RETRY && code != YIELDED && code != TESTING)
			break;
		nanosleep(&pause_time, 0);
	}
	if (code)
		halt("the TPM does not extend a register");
}
