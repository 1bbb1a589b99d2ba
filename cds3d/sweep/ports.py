"""Which ports a process and those that it has started listen at, from Linux's /proc."""

from __future__ import annotations

import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Port:
    """A TCP port that `program` listens at."""

    number: int
    address: str
    program: str


def open_ports(process: int) -> list[Port]:
    """The ports at which `process` or a descendant of it listens. Empty where there is no /proc."""
    sockets = {}
    for pid in family(process):
        for link in _links(pid):
            if link.startswith("socket:["):
                sockets[link[8:-1]] = pid
    ports = []
    for table in ("tcp", "tcp6"):
        for fields in _table(table):
            if fields[3] == "0A" and fields[9] in sockets:  # 0A: listening
                address, number = fields[1].split(":")
                ports.append(Port(int(number, 16), _address(address), _program(sockets[fields[9]])))
    return ports


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches the address."""
    parsed = ipaddress.ip_address(address)
    return (getattr(parsed, "ipv4_mapped", None) or parsed).is_loopback


def family(process: int) -> list[int]:
    """The process, and all that it and its children have started. The process alone where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended in between
        children.setdefault(parent, []).append(int(entry.parent.name))
    family, todo = [], [process]
    while todo:
        family.append(todo.pop())
        todo += children.get(family[-1], [])
    return family


def _links(pid: int) -> list[str]:
    """What the open files of a process are."""
    links = []
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):  # closed in between, as the listing's own is
                links.append(os.readlink(entry.path))
    except OSError:
        pass  # it has ended, or is somebody else's
    return links


def _table(name: str) -> list[list[str]]:
    try:
        return [line.split() for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    except OSError:
        return []


def _address(hexadecimal: str) -> str:
    """As /proc writes it: words of 32 bits, each with its lowest byte first."""
    words = [bytes.fromhex(hexadecimal[i : i + 8])[::-1] for i in range(0, len(hexadecimal), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"
