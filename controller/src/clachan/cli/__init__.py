"""The command `clachan`: what a person does with a platform, over `clachan.client`.

Each verb is a function in the file of its noun. What it prints goes to standard output, as a table, or with `--json`
as the API's own objects; progress and errors go to standard error. Exit status: 0 done, 1 failed, 2 wrong use,
3 still waiting at the time limit, 130 interrupted. A verb imports what it needs when it runs, so that help and
completion are quick.
"""


def main() -> None:
    """Run the command with the arguments of the process; ends the process."""
    import sys
    from contextlib import suppress
    from importlib import import_module

    if sys.argv[1:2] == ["agent"]:
        with suppress(ModuleNotFoundError):  # of an install without the agent; the usual way says so
            import_module("clachan.agent.start").quickly(sys.argv[2:])

    from clachan.cli.stream import quickly

    quickly(sys.argv[1:])
    from clachan.cli.app import run

    run()
