// toucher MB LIST: memory of which it reads, for ever, only the pages whose numbers (native uint32) are in LIST. It prints where the memory is.
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	size_t size = strtoul(argv[1], NULL, 10) << 20;
	int fd = open(argv[2], O_RDONLY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st))
		return 3;
	size_t n = st.st_size / sizeof(uint32_t);
	uint32_t *list = malloc(st.st_size);
	if (!list || read(fd, list, st.st_size) != st.st_size)
		return 4;
	char *mem = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		return 5;
	madvise(mem, size, MADV_NOHUGEPAGE); /* a kernel without them is fine */
	for (size_t i = 0; i < size; i += 4096)
		mem[i] = 1;
	printf("%p\n", (void *)mem);
	fflush(stdout);
	for (volatile unsigned long sum = 0;;)
		for (size_t i = 0; i < n; i++)
			sum += mem[(size_t)list[i] * 4096];
}
