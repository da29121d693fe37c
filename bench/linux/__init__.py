"""Kernel mechanisms, no policy: the only room that touches libc, netlink, mounts and cgroup files."""
