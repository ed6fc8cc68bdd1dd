"""`clachan down`: end everything that runs from a home, and leave its data."""

from pathlib import Path

from clachan.cli.errors import CommandError
from clachan.cli.platform_processes import end, processes, programs, stop_supervisord, stop_units

STOP_SECONDS = 60
END_SECONDS = 5
ROUNDS = 5


def stop(home: Path, forget: bool = False) -> int:
    """Answers how many processes ran. `forget` also removes the systemd units. Raises CommandError when one stays."""
    before = len({program.pid for program in programs(home) if program.pid} | set(processes(home)))
    stop_units(home, forget)
    stop_supervisord(home, STOP_SECONDS)
    for _ in range(ROUNDS):  # what is being ended may still start another
        left = processes(home)
        if not left:
            return before
        end(left, END_SECONDS)
    raise CommandError(f"processes {left} of {home}: still there, expected them to end")
