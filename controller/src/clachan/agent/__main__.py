"""`python -m clachan.agent`: the command of a node alone, without the rest of the CLI."""

import sys

from clachan.agent.start import quickly

quickly(sys.argv[1:])

from clachan.agent.command import app  # noqa: E402 - what quickly does without

app(prog_name="clachan agent")
