/* What the files of the init share. Every function either does what it says or powers off. */
#ifndef CLOISTER_INIT_H
#define CLOISTER_INIT_H

#include <stddef.h>

#define BLOCK 4096
#define SPEC_TEXT 256
#define WAIT_TRIES 3000 /* of 10 ms: half a minute for slow buses on slow machines */

/* One read-only disk under dm-verity, as its footer or the command line describes it.
   src/cloister/image/footer.py writes the line and says what each field is. */
struct disk {
	char kind[16];
	char fs[16];
	unsigned long long data_blocks;
	unsigned long long hash_start;
	char root_hash[65];
	char salt[65];
};

/* init.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
_Noreturn void halt(const char *why);
size_t read_text(const char *path, char *text, size_t size);
void write_text(const char *path, const char *text);
int same_command_line(const char *measured, const char *found);

/* modules.c */
void list_hardware(const char *sysfs, char *names, size_t size);
int has_hardware(const char *names, const char *patterns);
void load_modules(void);

/* disk.c */
int read_number(const char *text, unsigned long long *value);
int each_device(int (*visit)(const char *device, void *state), void *state);
void parse_spec(const char *kind, const char *text, struct disk *disk);
int footer_of(const char *device, struct disk *disk, char *line, size_t size);
void protect_block_devices(void);
void find_pinned(const struct disk *wanted, char *device, size_t size);
void find_only(const char *kind, struct disk *disk, char *line, char *device, size_t size);

/* verity.c */
void mount_verified(const struct disk *disk, const char *device, const char *where,
		    unsigned long flags);

/* tpm.c */
int has_tpm(void);
void measure(unsigned pcr, const void *data, size_t size);

/* enclave.c */
int is_enclave(void);
void tell_parent(void);
void add_entropy(void);
void attach_ramdisk(const char *file);
void mount_from_ramdisk(const char *name, const char *where, unsigned long flags);

/* net.c */
void configure_interfaces(const char *path);

/* start.c */
int copy_start_disk(const char *where, int has_port);

/* worker.c */
void harden_kernel(void);
_Noreturn void run_worker(void);

#endif
