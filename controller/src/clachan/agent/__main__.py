"""`python -m clachan.agent`: the command of a node alone, without the rest of the CLI."""

from clachan.agent.command import app

app(prog_name="clachan agent")
