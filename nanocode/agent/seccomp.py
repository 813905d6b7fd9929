"""The system calls that sandboxed commands may not make, as a classic BPF program for seccomp(2).

A deny list, since what a Python, a compiler and a shell need cannot be listed; Landlock or a mount namespace holds the
files. Numbers: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h, alike from 424 on.
"""

import errno
import platform
import struct
from collections.abc import Iterable
from typing import NamedTuple

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
X32_BIT = 0x40000000

ALLOW = 0x7FFF0000
ERRNO = 0x00050000

# BPF instructions: load a word of seccomp_data, and with a constant, jump if equal, return.
LOAD, AND, JUMP_EQUAL, RETURN = 0x20, 0x54, 0x15, 0x06
# Offsets into struct seccomp_data.
NUMBER, ARCH, ARGUMENTS = 0, 4, 16

# name: (x86_64, aarch64); aarch64 never had the calls that newer ones replaced.
NUMBERS: dict[str, tuple[int, int | None]] = {
    # the network, and sockets on which another address could be set
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "socketpair": (53, 199),
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "move_pages": (279, 239),
    "migrate_pages": (256, 238), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "fcntl": (72, 25), "ioctl": (16, 29),
    # memory and messages shared by number or name
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "msgget": (68, 186), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "msgctl": (71, 187), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191),
    "semtimedop": (220, 192), "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_notify": (244, 184),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "open_tree_attr": (467, 467), "unshare": (272, 97),
    "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435),
    # kernel facilities with a history of holes, and the machine itself
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "fanotify_init": (300, 262),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161), "setdomainname": (171, 162),
    # what Landlock leaves open: the metadata of files outside the workspace
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utimensat": (280, 88), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "setxattrat": (463, 463), "removexattrat": (466, 466), "file_setattr": (469, 469), "truncate": (76, 45),
}  # fmt: skip

NETWORK = ("socket", "connect", "bind", "listen")
ALWAYS = (
    *NETWORK, "ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_send_signal", "pidfd_open",
    "pidfd_getfd", "process_madvise", "process_mrelease", "move_pages", "migrate_pages", "shmget", "shmat", "shmctl",
    "msgget", "msgsnd", "msgrcv", "msgctl", "semget", "semop", "semctl", "semtimedop", "mq_open", "mq_unlink",
    "mq_notify", "mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig",
    "fsmount", "fspick", "mount_setattr", "open_tree_attr", "unshare", "setns", "keyctl", "add_key", "request_key",
    "bpf", "io_uring_setup", "io_uring_enter", "io_uring_register", "perf_event_open", "userfaultfd", "fanotify_init",
    "name_to_handle_at", "open_by_handle_at", "init_module", "finit_module", "delete_module", "kexec_load",
    "kexec_file_load", "reboot", "swapon", "swapoff", "acct", "quotactl", "quotactl_fd", "syslog", "settimeofday",
    "clock_settime", "clock_adjtime", "adjtimex", "sethostname", "setdomainname",
)  # fmt: skip
OF_OTHERS = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")
XATTRS = (
    "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "setxattrat",
    "removexattrat", "file_setattr",
)  # fmt: skip
OWNERS = ("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat")
SIGNALS = ("tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2}

SET_ID_BITS = 0o6000
NEW_NAMESPACE_FLAGS = 0x7E020000
SOCKET_TYPE_MASK, STREAM = 0xF, 1
FCNTL_OWNER = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX: they make the kernel send signals for the caller
IOCTL_REFUSED = (0x8901, 0x8902, 0x5412, 0x541C)  # FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX


class Refusal(NamedTuple):
    """One call that fails with `error`, always or on a condition of the low 32 bits of an argument."""

    call: str
    error: int = errno.EPERM
    argument: int | None = None
    mask: int = 0xFFFFFFFF
    values: tuple[int, ...] = (0,)
    when_among: bool = False
    """Refuse when the masked argument is one of `values`; otherwise when it is none of them."""
    pointer: bool = False
    """The argument is an address: any but NULL is refused."""


def refusals(*, files_by_landlock: bool, own_user: bool, signals_scoped: bool, truncate_scoped: bool) -> list[Refusal]:
    """What is refused, given what already holds.

    `own_user`: the command has a user id of its own. `signals_scoped`: its signals cannot leave the sandbox.
    """
    found = [Refusal(name) for name in ALWAYS]
    found += [Refusal(name, argument=0) for name in OF_OTHERS]
    found += [
        Refusal("setpriority", argument=1),
        Refusal("ioprio_set", argument=1),
        # A datagram pair could be connected anew, to a socket outside.
        Refusal("socketpair", argument=1, mask=SOCKET_TYPE_MASK, values=(STREAM,)),
        Refusal("clone", argument=0, mask=NEW_NAMESPACE_FLAGS),
        # Its flags lie in memory, where no filter sees them; the C library falls back to clone.
        Refusal("clone3", errno.ENOSYS),
        Refusal("fcntl", argument=1, values=FCNTL_OWNER, when_among=True),
        Refusal("ioctl", argument=1, values=IOCTL_REFUSED, when_among=True),
    ]
    # A set-user-id file in the workspace would be a gift to other users of the machine.
    found += [Refusal(name, argument=n, mask=SET_ID_BITS) for name, n in MODE_ARGUMENT.items()]
    if files_by_landlock:
        found += [Refusal(name, errno.EOPNOTSUPP) for name in XATTRS]
        found += [Refusal(name) for name in ("utime", "utimes", "futimesat")]
        found += [Refusal("utimensat", argument=1, pointer=True)]
        if not own_user:
            found += [Refusal(name) for name in OWNERS]
        if not truncate_scoped:
            found += [Refusal("truncate")]
    if not signals_scoped:
        found += [Refusal("kill", argument=0), *(Refusal(name) for name in SIGNALS)]
    return found


def program(found: Iterable[Refusal], machine: str | None = None) -> bytes:
    """The filter as an array of struct sock_filter; `ValueError` on a machine whose calls are not listed."""
    machine = machine or platform.machine()
    if machine not in AUDIT_ARCH:
        raise ValueError(f"no list of system calls for {machine}: run on x86_64 or aarch64, or without Bash")
    column = 0 if machine == "x86_64" else 1
    refused_abi = _step(RETURN, ERRNO | errno.ENOSYS)
    code = _step(LOAD, ARCH) + _step(JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0) + refused_abi + _step(LOAD, NUMBER)
    code += _step(AND, X32_BIT) + _step(JUMP_EQUAL, 0, 1, 0) + refused_abi + _step(LOAD, NUMBER)
    for refusal in found:
        number = NUMBERS[refusal.call][column]
        if number is None:
            continue
        body = _body(refusal)
        code += _step(JUMP_EQUAL, number, 0, len(body) // 8) + body
    return code + _step(RETURN, ALLOW)


def _body(refusal: Refusal) -> bytes:
    """What follows when the number matched; where it does not return, the number is loaded again."""
    refuse = _step(RETURN, ERRNO | refusal.error)
    if refusal.argument is None:
        return refuse
    low = ARGUMENTS + 8 * refusal.argument
    if refusal.pointer:
        test = _step(LOAD, low) + _step(JUMP_EQUAL, 0, 0, 2) + _step(LOAD, low + 4) + _step(JUMP_EQUAL, 0, 1, 0)
        return test + refuse + _step(LOAD, NUMBER)
    test = _step(LOAD, low) + _step(AND, refusal.mask)
    for i, value in enumerate(refusal.values):
        left = len(refusal.values) - i - 1
        if refusal.when_among:  # a hit goes to `refuse`, the last miss beyond it
            test += _step(JUMP_EQUAL, value, left, 0 if left else 1)
        else:  # a hit goes beyond `refuse`
            test += _step(JUMP_EQUAL, value, left + 1, 0)
    return test + refuse + _step(LOAD, NUMBER)


def _step(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, constant)
