"""Linux calls that Python has no name for: Landlock, seccomp, capabilities and prctl, through ctypes.

Every function raises `OSError` where the kernel refuses or does not know the call. The numbers are those of
include/uapi/linux/{landlock,prctl,seccomp,capability}.h, the same on x86_64 and aarch64 unless listed.
"""

import ctypes
import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable

LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
CAPSET = {"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1)

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 8, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47

CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 1, 6, 7, 8

# Landlock's rights over files, and since which version of its interface the kernel knows them.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
ALL_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
# Devices and sockets have no place in a workspace.
NO_SPECIAL_FILES = ~(1 << 6 | 1 << 9 | 1 << 11)
LANDLOCK_TRUNCATE_SINCE, LANDLOCK_NETWORK_SINCE, LANDLOCK_SCOPE_SINCE = 3, 4, 6

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    # Integers go as 64 bits, or the upper half of a register would be left to chance.
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, *arguments: int) -> None:
    """prctl(2) with missing arguments as 0."""
    padded = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc.prctl(option, *padded) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")


def landlock_version() -> int:
    """The version of Landlock's interface, 0 where the kernel has none or has it switched off."""
    try:
        return _syscall(LANDLOCK_CREATE_RULESET, None, 0, 1)
    except OSError:
        return 0


def restrict_files(readable: Iterable[str], devices: Iterable[str], writable: Iterable[str]) -> None:
    """From now on this process and its children reach these paths only, and signal only each other where known.

    `readable` may also be executed; paths that do not exist are skipped. Needs no_new_privs.
    """
    version = landlock_version()
    handled = ALL_RIGHTS[min(version, max(ALL_RIGHTS))]
    network = 3 if version >= LANDLOCK_NETWORK_SINCE else 0
    scoped = 3 if version >= LANDLOCK_SCOPE_SINCE else 0
    # A kernel refuses a longer structure only when the part that it does not know is not zero.
    attributes = struct.pack("=QQQ", handled, network, scoped)
    ruleset = _syscall(LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for paths, rights in (
            (readable, READ),
            (devices, READ_FILE | WRITE_FILE | TRUNCATE),
            (writable, handled & NO_SPECIAL_FILES),
        ):
            for path in paths:
                try:
                    there = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    mask = handled if stat.S_ISDIR(os.fstat(there).st_mode) else handled & FILE_RIGHTS
                    _syscall(LANDLOCK_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights & mask, there), 0)
                finally:
                    os.close(there)
        _syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def filter_calls(program: bytes) -> None:
    """Install a seccomp filter, an array of struct sock_filter, for good. Needs no_new_privs."""
    code = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(header))


def effective_capabilities() -> int:
    """The bits of CapEff of this process."""
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def become(user: int, capabilities: tuple[int, ...]) -> None:
    """Change to a user and group of that number that keeps these capabilities, and no others, across exec."""
    for capability in range(64):
        if capability not in capabilities:
            try:
                prctl(PR_CAPBSET_DROP, capability)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # beyond the last one that this kernel has
                raise
    prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    bits = sum(1 << capability for capability in capabilities)
    # Version 3 takes two 32-bit halves of effective, permitted and inheritable.
    _syscall(CAPSET, struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", bits, bits, bits, 0, 0, 0))
    for capability in capabilities:
        prctl(PR_CAP_AMBIENT, 2, capability)
