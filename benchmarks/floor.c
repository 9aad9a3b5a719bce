/* What the kernel itself takes for a leaf: replays what the gateway's factory asks of it, without Python.
 *
 *     floor SCRIPT LEAVES ALIVE
 *
 * SCRIPT, which kernel_floor.py writes, holds the factory's own system calls and netlink bytes: first those that make
 * the hub, then those of each leaf. Each leaf is a network and a mount namespace; ALIVE of them are kept before that
 * many are dropped together. Prints the nanoseconds of all leaves together, then those that each took to be made.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define HUB 100 /* the hub's descriptor, by which the messages name it */
#define MOUNTS 101

struct record {
	uint32_t op, length;
	char data[];
};

struct leaf {
	int net, mnt;
};

static int hub_route = -1, route = -1, filter = -1;

static int opened(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		err(1, "open %s", path);
	return fd;
}

static int netlink(int protocol)
{
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
	if (fd < 0)
		err(1, "socket");
	return fd;
}

static void new_network(void)
{
	if (unshare(CLONE_NEWNET) < 0)
		err(1, "unshare(CLONE_NEWNET)");
	route = netlink(NETLINK_ROUTE);
	filter = netlink(NETLINK_NETFILTER);
}

/* The data is a directory, a name in it, and what to write there, with a zero between; without any, it is the end. */
static void write_setting(const char *data, uint32_t length)
{
	static int directories[8], count = 0;
	static const char *paths[8];
	int at = 0;
	if (!length) {
		while (count)
			close(directories[--count]);
		return;
	}
	while (at < count && strcmp(paths[at], data))
		at++;
	if (at == count) {
		if (count == 8)
			errx(1, "settings in more than 8 directories");
		paths[count] = data;
		directories[count++] = opened(data, O_PATH | O_DIRECTORY);
	}
	const char *name = data + strlen(data) + 1, *value = name + strlen(name) + 1;
	int fd = openat(directories[at], name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		err(1, "open %s/%s", data, name);
	if (write(fd, value, data + length - value) < 0)
		err(1, "write %s/%s", data, name);
	close(fd);
}

/* The data is the number of the last message, and the messages. */
static void request(int fd, const char *data, uint32_t length)
{
	static char answer[65536] __attribute__((aligned(8)));
	uint32_t last;
	memcpy(&last, data, 4);
	if (send(fd, data + 4, length - 4, 0) < 0)
		err(1, "send");
	for (;;) {
		ssize_t got = recv(fd, answer, sizeof answer, 0);
		if (got < 0)
			err(1, "recv");
		int left = got;
		for (struct nlmsghdr *m = (void *)answer; NLMSG_OK(m, left); m = NLMSG_NEXT(m, left)) {
			if (m->nlmsg_type != NLMSG_ERROR)
				continue;
			int error = ((struct nlmsgerr *)NLMSG_DATA(m))->error;
			if (error)
				errx(1, "message %u of a request: %s", m->nlmsg_seq, strerror(-error));
			if (m->nlmsg_seq == last)
				return;
		}
	}
}

/* The data is a list of paths with a zero after each, and one more after the last: what is mounted below /sys. */
static int copy_mounts(const char *data)
{
	int kept[16], count = 0;
	char source[32];
	if (setns(MOUNTS, CLONE_NEWNS) < 0 || unshare(CLONE_NEWNS) < 0)
		err(1, "copy the mount namespace");
	for (const char *path = data; *path && count < 16; path += strlen(path) + 1)
		kept[count++] = opened(path, O_PATH);
	if (mount("sysfs", "/sys", "sysfs", 0, NULL) < 0)
		err(1, "mount /sys");
	for (int i = 0; i < count; i++, data += strlen(data) + 1) {
		snprintf(source, sizeof source, "/proc/self/fd/%d", kept[i]);
		if (mount(source, data, NULL, MS_BIND | MS_REC, NULL) < 0)
			err(1, "mount %s", data);
		close(kept[i]);
	}
	int fd = opened("/proc/thread-self/ns/mnt", O_RDONLY);
	if (setns(MOUNTS, CLONE_NEWNS) < 0)
		err(1, "setns");
	return fd;
}

static void become_hub(void)
{
	int fd = opened("/proc/thread-self/ns/net", O_RDONLY);
	dup3(fd, HUB, O_CLOEXEC);
	close(fd);
	hub_route = route;
}

static struct leaf finish(int mnt)
{
	struct leaf made = {opened("/proc/thread-self/ns/net", O_RDONLY), mnt};
	close(route);
	close(filter);
	if (setns(HUB, CLONE_NEWNET) < 0)
		err(1, "setns");
	return made;
}

/* Carries out the records of one leaf, or of the hub, and returns where the next ones begin. */
static const char *play(const char *at, struct leaf *made)
{
	int mnt = -1;
	for (;;) {
		const struct record *r = (const void *)at;
		at += sizeof *r + ((r->length + 3) & ~3u);
		switch (r->op) {
		case 'N': new_network(); break;
		case 'S':
		case 'C': write_setting(r->data, r->length); break;
		case 'R': request(route, r->data, r->length); break;
		case 'F': request(filter, r->data, r->length); break;
		case 'H': request(hub_route, r->data, r->length); break;
		case 'M': mnt = copy_mounts(r->data); break;
		case 'U': become_hub(); return at;
		case 'E': *made = finish(mnt); return at;
		default: errx(1, "unknown record %u", r->op);
		}
	}
}

static void drop(struct leaf *leaves, int count)
{
	for (int i = 0; i < count; i++) {
		close(leaves[i].net);
		close(leaves[i].mnt);
	}
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 4)
		errx(2, "usage: floor SCRIPT LEAVES ALIVE");
	int count = atoi(argv[2]), alive = atoi(argv[3]), held = 0;
	struct leaf *leaves = calloc(alive, sizeof *leaves);
	uint64_t *spent = calloc(count, sizeof *spent);
	struct stat status;
	int script = opened(argv[1], O_RDONLY);
	fstat(script, &status);
	const char *at = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, script, 0);
	if (at == MAP_FAILED)
		err(1, "mmap");
	int mounts = opened("/proc/thread-self/ns/mnt", O_RDONLY);
	dup3(mounts, MOUNTS, O_CLOEXEC);
	close(mounts);
	at = play(at, NULL);
	uint64_t start = now();
	for (int i = 0; i < count; i++) {
		uint64_t began = now();
		at = play(at, &leaves[held++]);
		spent[i] = now() - began;
		if (held == alive) {
			drop(leaves, held);
			held = 0;
		}
	}
	drop(leaves, held);
	printf("%llu", (unsigned long long)(now() - start));
	for (int i = 0; i < count; i++)
		printf(" %llu", (unsigned long long)spent[i]);
	putchar('\n');
	return 0;
}
