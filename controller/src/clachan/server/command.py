"""`clachan controller init|serve`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="The controller: make its home, serve it.", no_args_is_help=True, pretty_exceptions_enable=False)
Home = Annotated[Path, typer.Option("--home", help="State directory (CLACHAN_HOME).", envvar="CLACHAN_HOME")]


@app.command()
def init(home: Home) -> None:
    """Make database, CA, account and tenant `home`, user `operator` and credentials.json. Safe to repeat."""
    from clachan.server.start import initialise

    with _refusals():
        typer.echo("controller made" if initialise(home) else "controller ready")


@app.command()
def serve(home: Home) -> None:
    """Serve HTTPS until SIGTERM."""
    import gc

    # loading makes no garbage, and looking for it costs a fifth of the start
    gc.disable()
    from clachan.server.start import serve as run

    with _refusals():
        run(home)


@contextmanager
def _refusals() -> Iterator[None]:
    """What the operator can mend is one line, not a trace."""
    from clachan.server.services.refusals import Refusal
    from clachan.server.settings import SettingsError

    try:
        yield
    except (Refusal, SettingsError) as error:
        typer.echo(f"controller: {error}", err=True)
        raise typer.Exit(1) from error
