"""A filter of system calls for `bwrap --seccomp`: what no program under test needs, and attacks begin with, is refused.

Classic BPF as the kernel's `Documentation/userspace-api/seccomp_filter.rst` describes it: instructions of 8 bytes over
`struct seccomp_data` (nr at 0, arch at 4, the low words of the arguments from 16 on). Numbers of system calls from the
kernel's tables for x86-64 and the generic one that AArch64 uses.
"""

from __future__ import annotations

import platform
import struct

_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _KILL, _REFUSE, _UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026  # EPERM; ENOSYS
_NEW_NAMESPACE = 0x7E020080  # CLONE_NEW* of every kind
_X32 = 0x40000000

# name: (x86-64, AArch64)
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "memfd_secret": (447, 447),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "setpriority": (141, 140),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "ioprio_set": (251, 30),
    "socket": (41, 198),  # of every family: those for virtual machines, say, know no network namespace
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "personality": (135, 92),
    "kexec_file_load": (320, 294),
    "fsconfig": (431, 431),
    "fspick": (433, 433),
    "io_setup": (206, 0),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # memory that no limit of a process counts once it has let go of it
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
}
_ONLY_X86 = (154, 172, 173)  # modify_ldt, iopl, ioperm
_ARCHES = {"x86_64": (0, 0xC000003E, 56, 435), "aarch64": (1, 0xC00000B7, 220, 435)}


def program() -> bytes | None:
    """The filter for this machine; None where its system calls are not known, and namespaces and limits must do."""
    found = _ARCHES.get(platform.machine())
    if found is None:
        return None
    column, arch, clone, clone3 = found
    numbers = sorted({pair[column] for pair in _REFUSED.values()}.union(() if column else _ONLY_X86))
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if column == 0:
        lines += [(0x35, 0, 1, _X32), (_RETURN, 0, 0, _KILL)]  # another table of numbers, which this one is not
    for number in numbers:
        lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # Flags of clone3 lie in memory, where a filter cannot look: without it libraries fall back to clone.
    lines += [(_EQUAL, 0, 1, clone3), (_RETURN, 0, 0, _UNKNOWN)]
    lines += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, 16), (_SET, 0, 1, _NEW_NAMESPACE), (_RETURN, 0, 0, _REFUSE)]
    lines += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *line) for line in lines)
