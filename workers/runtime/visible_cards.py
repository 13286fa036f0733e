"""Which cards (GPUs) a process sees, and how it is kept to one of them.

A card is named as the variables name it that choose cards for a process: by its number, by the UUID of a GPU, or by
that of a MIG instance. `CUDA_VISIBLE_DEVICES` chooses on NVIDIA's cards; on AMD's `ROCR_VISIBLE_DEVICES` chooses first,
and `HIP_VISIBLE_DEVICES`, else `CUDA_VISIBLE_DEVICES`, counts among what that leaves. SLURM sets several of them
whatever the cards are. PyTorch is not imported here: who starts workers need not wait for it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"

_SMI_SECONDS = 30.0
"""What nvidia-smi gets to answer: without its daemon the driver starts anew for each question."""
_GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card of this machine, or a MIG instance of one."""

    id: str
    name: str = "unknown"
    memory: int = 0
    """Bytes; 0 where nobody says."""

    def __str__(self) -> str:
        return self.name + (f", {self.memory / _GIB:.0f} GiB" if self.memory else "")


@cache
def installed_cards(devices: Path = Path("/dev"), kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> list[Card]:
    """The cards of this machine, asked once: nvidia-smi, else the device files of NVIDIA's or AMD's driver."""
    found = _asked_of_nvidia_smi()
    if found is not None:
        return found
    numbers = sorted(int(path.name[6:]) for path in devices.glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return [Card(str(number)) for number in range(len(numbers))] or _amd_cards(kfd)


def listed_cards(environment: Mapping[str, str], amd: bool = False) -> list[str] | None:
    """The cards that the environment names for a process, in its order; None where it names none.

    Args:
        environment: the variables.
        amd: whether the cards are AMD's, whose variables `CUDA_VISIBLE_DEVICES` is one of.
    """
    if not amd:
        return _names(environment.get(CUDA))
    below, above = _names(environment.get(ROCR)), _names(environment.get(HIP))
    above = _names(environment.get(CUDA)) if above is None else above
    if below is None or above is None:
        return above if below is None else below
    places = [int(name) if name.isdigit() else len(below) for name in above]
    # SLURM writes the same list into both: then the second one does not count among the first.
    return [below[place] for place in places] if all(place < len(below) for place in places) else below


def visible_cards(environment: Mapping[str, str]) -> list[Card]:
    """The cards of this machine that a process with this environment sees."""
    cards = installed_cards()
    names = listed_cards(environment, amd=bool(cards) and cards[0].name == _AMD)
    if names is None or not cards:
        return cards
    return [_card_named(name, cards) for name in names]


def pinned(environment: Mapping[str, str], number: int, amd: bool = False) -> dict[str, str | None]:
    """The variables that keep a process to one card, before it uses any; None unsets one.

    Args:
        environment: its variables.
        number: which of the cards that it sees, counted round.
        amd: whether the cards are AMD's.
    """
    names = listed_cards(environment, amd)
    if names is None:
        names = [card.id for card in installed_cards()]
    if not names:
        return {}
    name = names[number % len(names)]
    if not amd:
        return {CUDA: name}
    return {ROCR: name, HIP: None, CUDA: None} if environment.get(ROCR) else {HIP: name, CUDA: None}


_AMD = "AMD"


def _names(value: str | None) -> list[str] | None:
    """The cards of a list, which ends at the first one that is none."""
    if value is None:
        return None
    names: list[str] = []
    for name in (part.strip() for part in value.split(",")):
        if name in ("", "-1", "NoDevFiles", "none", "void"):
            break
        names.append(name)
    return names


def _card_named(name: str, cards: Sequence[Card]) -> Card:
    """The card that a list means by a number or by the beginning of a UUID."""
    if name.isdigit() and int(name) < len(cards):
        known = cards[int(name)]
    else:
        known = next((card for card in cards if card.id.startswith(name)), Card(name))
    return Card(name, known.name, known.memory)


def _asked_of_nvidia_smi() -> list[Card] | None:
    """The cards that nvidia-smi lists, a card with MIG instances by those; None where it is not there or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        lines = _output(program, "-L").splitlines()
        sizes = dict(
            line.split(", ") for line in _output(program, "--query-gpu=uuid,memory.total", *_PLAIN).splitlines() if line
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return _listed(lines, {uuid: int(size) << 20 for uuid, size in sizes.items() if size.isdigit()})


_PLAIN = ("--format=csv,noheader,nounits",)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True).stdout


def _listed(lines: Sequence[str], memory: Mapping[str, int]) -> list[Card]:
    """The cards of the lines of `nvidia-smi -L`; `memory` is in bytes by UUID."""
    cards: list[Card] = []
    split: set[str] = set()
    whole = ""
    for line in lines:
        if match := re.match(r"GPU \d+: (.+?) \(UUID: (\S+)\)", line):
            whole = match[2]
            cards.append(Card(whole, match[1], memory.get(whole, 0)))
        elif match := re.match(r"\s+MIG (\S*?(\d+)gb\S*)\s+Device\s+\d+: \(UUID: (\S+)\)", line):
            split.add(whole)
            cards.append(Card(match[3], f"MIG {match[1]}", int(match[2]) * 10**9))
    return [card for card in cards if card.id not in split]


def _amd_cards(kfd: Path) -> list[Card]:
    """The cards that AMD's driver lists: the nodes of its topology that are no CPUs."""
    cards: list[Card] = []
    for node in sorted(kfd.glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            if (node / "gpu_id").read_text().strip() in ("", "0"):
                continue
            banks = [path.read_text() for path in node.glob("mem_banks/*/properties")]
        except OSError:
            continue
        sizes = re.findall(r"size_in_bytes (\d+)", "\n".join(banks))
        cards.append(Card(str(len(cards)), _AMD, sum(map(int, sizes))))
    return cards
