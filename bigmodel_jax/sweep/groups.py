"""Groups of a machine's devices, each for one process of a sweep."""

import os
from collections.abc import Sequence

# Environment variables that select the devices which a process sees.
VISIBLE = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
VIRTUAL = "JAX_NUM_CPU_DEVICES"  # the number of virtual devices of a CPU, none of which has a name


def names(group: str) -> list[str]:
    """The devices of a group such as 0,1."""
    return group.split(",")


def check(groups: Sequence[str]) -> None:
    """Raise ValueError, one line, unless all groups have as many devices, and no device twice."""
    said, found = f"--groups {' '.join(groups)}", [name for group in groups for name in names(group)]
    if "" in found:
        raise ValueError(f"{said}: a device has no name; give groups such as 0,1 2,3")
    if twice := next((name for name in found if found.count(name) > 1), ""):
        raise ValueError(f"{said}: device {twice} is named twice; each belongs to one group")
    if len(sizes := sorted({len(names(group)) for group in groups})) > 1:
        raise ValueError(
            f"{said}: the groups have {' and '.join(map(str, sizes))} devices; give each the same number, so that "
            "trials compare"
        )
    num = virtual()
    if wrong := [name for name in found if num and not (name.isdecimal() and int(name) < num)]:
        raise ValueError(f"{said}: device {wrong[0]} is not there; {VIRTUAL} = {num} makes the devices 0 to {num - 1}")


def virtual() -> int:
    """The number of virtual CPU devices that the environment asks for; 0 where it asks for none."""
    given = os.environ.get(VIRTUAL, "")
    return int(given) if given.isdecimal() and int(given) > 1 else 0


def environment(group: str) -> dict[str, str]:
    """The variables that make a process see only the devices of this group."""
    # A vendor's runtime ignores the variables of the others, so all can be set.
    return dict.fromkeys(VISIBLE, group) | ({VIRTUAL: str(len(names(group)))} if virtual() else {})


def check_seen(group: str, num: int) -> None:
    """Raise ValueError, one line, where the process of a group sees another number of devices."""
    if num != len(names(group)):
        raise ValueError(
            f"--groups {group}: the process sees {num} devices, not {len(names(group))}; name devices that this machine has "
            f"({VIRTUAL} makes virtual ones of a CPU)"
        )
