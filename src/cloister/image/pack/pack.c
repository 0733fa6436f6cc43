/* pack FROM TO: compresses a file with zstd, by the library that the build's programs bring along.
   They bring neither a program nor headers for it, hence the declarations (zstd.h 1.5). One call
   in one thread: the same library makes the same bytes of the same file. */
#include <stdio.h>
#include <stdlib.h>

#define LEVEL 19 /* the highest that needs no window larger than the kernel expects (8 MiB) */

size_t ZSTD_compressBound(size_t size);
size_t ZSTD_compress(void *to, size_t room, const void *from, size_t size, int level);
unsigned ZSTD_isError(size_t result);

static _Noreturn void fail(const char *why)
{
	perror(why);
	exit(1);
}

int main(int count, char **arguments)
{
	FILE *from = count == 3 ? fopen(arguments[1], "rb") : NULL;
	FILE *to = from ? fopen(arguments[2], "wb") : NULL;
	long size;
	if (!to || fseek(from, 0, SEEK_END) || (size = ftell(from)) < 0)
		fail("cannot be opened");
	rewind(from);
	size_t room = ZSTD_compressBound((size_t)size);
	char *content = malloc((size_t)size + 1), *packed = malloc(room);
	if (!content || !packed || fread(content, 1, (size_t)size, from) != (size_t)size)
		fail("cannot be read");
	size_t length = ZSTD_compress(packed, room, content, (size_t)size, LEVEL);
	if (ZSTD_isError(length) || fwrite(packed, 1, length, to) != length || fclose(to))
		fail("cannot be packed");
	return 0;
}
