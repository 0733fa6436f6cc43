/* Addresses from a file of the measured application disk. The rules are in force already.
   No DHCP, no router advertisements: the image asks nobody where it is. */
#define _GNU_SOURCE
#include "init.h"

#include <arpa/inet.h>
#include <errno.h>
#include <dirent.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static void request(unsigned long number, void *argument, const char *why)
{
	int handle = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (handle < 0 || ioctl(handle, number, argument))
		halt(why);
	close(handle);
}

static void bring_up(const char *name)
{
	struct ifreq interface = {0};
	snprintf(interface.ifr_name, sizeof interface.ifr_name, "%s", name);
	request(SIOCGIFFLAGS, &interface, "an interface has no flags");
	interface.ifr_flags |= IFF_UP;
	request(SIOCSIFFLAGS, &interface, "an interface does not come up");
}

/* The one Ethernet card there is. With two, which one is meant would be the host's choice. */
static void find_card(char *name, size_t size)
{
	int found = 0;
	DIR *directory = opendir("/sys/class/net");
	if (!directory)
		halt("/sys/class/net");
	for (struct dirent *entry; (entry = readdir(directory));) {
		char path[320], type[16];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "/sys/class/net/%s/type", entry->d_name);
		read_text(path, type, sizeof type);
		if (atoi(type) == ARPHRD_ETHER && strlen(entry->d_name) < size) {
			strcpy(name, entry->d_name);
			found++;
		}
	}
	closedir(directory);
	if (found != 1)
		halt("an address needs one network card, no more and no fewer");
}

static struct sockaddr ipv4(const char *text)
{
	union {
		struct sockaddr any;
		struct sockaddr_in in;
	} address = {.in = {.sin_family = AF_INET}};
	if (inet_pton(AF_INET, text, &address.in.sin_addr) != 1)
		halt("an address does not decode");
	return address.any;
}

static void add_ipv4(const char *name, const char *text, unsigned prefix)
{
	struct ifreq interface = {0};
	char mask[INET_ADDRSTRLEN];
	struct in_addr bits = {htonl(prefix ? ~0U << (32 - prefix) : 0)};
	if (prefix > 32 || !inet_ntop(AF_INET, &bits, mask, sizeof mask))
		halt("a prefix is out of range");
	snprintf(interface.ifr_name, sizeof interface.ifr_name, "%s", name);
	interface.ifr_addr = ipv4(text);
	request(SIOCSIFADDR, &interface, "an address cannot be set");
	interface.ifr_netmask = ipv4(mask);
	request(SIOCSIFNETMASK, &interface, "a netmask cannot be set");
}

static void add_gateway(const char *text)
{
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	route.rt_dst = ipv4("0.0.0.0");
	route.rt_genmask = ipv4("0.0.0.0");
	route.rt_gateway = ipv4(text);
	request(SIOCADDRT, &route, "a gateway cannot be set");
}

/* Lines `address ADDRESS/PREFIX` and `gateway ADDRESS`, of IPv4. No file: only lo. */
void configure_interfaces(const char *path)
{
	static char text[4096];
	char card[IFNAMSIZ] = "", *rest = text;
	bring_up("lo");
	if (!access(path, F_OK))
		read_text(path, text, sizeof text);
	for (char *line; (line = strsep(&rest, "\n"));) {
		char *value = strchr(line, ' ');
		if (!*line)
			continue;
		if (!value)
			halt("a line of the interface's settings has no value");
		*value++ = 0;
		if (!strcmp(line, "gateway")) {
			add_gateway(value);
			continue;
		}
		char *prefix = strchr(value, '/');
		if (strcmp(line, "address") || !prefix)
			halt("a line of the interface's settings is not known");
		*prefix++ = 0;
		if (!*card) {
			find_card(card, sizeof card);
			bring_up(card);
		}
		add_ipv4(card, value, (unsigned)atoi(prefix));
	}
	say("network: %s", *card ? card : "none");
}
