"""`clachan lab`: a JupyterLab of the platform, opened in the browser, or running a notebook from here."""

from pathlib import Path
from typing import Annotated

import typer

from clachan.cli.connection import complete_instance
from clachan.cli.options import Json, check_path

app = typer.Typer(no_args_is_help=True, help="Labs: open one in the browser, run a notebook in one.")
notebook = typer.Typer(no_args_is_help=True, help="Notebooks, run from first cell to last.")
app.add_typer(notebook, name="notebook")

_HELP = "The lab; default: the only one that you may see."
LabPath = Annotated[
    str | None,
    typer.Argument(metavar="[PATH]", help=_HELP, autocompletion=complete_instance, callback=check_path),
]
OfLab = Annotated[
    str | None, typer.Option("--lab", metavar="PATH", help=_HELP, autocompletion=complete_instance, callback=check_path)
]


@app.command("open")
def open_(
    path: LabPath = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open it in the browser, where this session has one.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Print the address of a lab, with the token that logs in, and open it; of a hub name and token for its page."""
    import json

    from clachan.cli import lab_hub, lab_server

    if hub := lab_hub.find(path):
        told = {"path": hub.path, "url": hub.url, "user": hub.user, "token": hub.token, "seconds": lab_hub.SECONDS}
        lines = f"{hub.url}\nuser   {hub.user}\ntoken  {hub.token}  (for {lab_hub.SECONDS // 60} minutes)"
        print(json.dumps(told, indent=2) if as_json else lines)
        return
    lab = lab_server.find(path)
    if browser and not as_json:
        lab_server.open_in_browser(lab)
    print(json.dumps({"path": lab.path, "url": lab.link}, indent=2) if as_json else lab.link)


@notebook.command("run")
def run(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="The notebook.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", metavar="NAME=VALUE", help="One of its cell `parameters`; JSON or text. May repeat."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="The result; default FILE-result.ipynb."),
    ] = None,
    kernel: Annotated[str, typer.Option("--kernel", metavar="NAME", help="The kernel environment.")] = "science",
    lab: OfLab = None,
    as_json: Json = False,
) -> None:
    """Run a notebook in a lab, saying which cell it is at; the result is written after every cell."""
    import json

    from clachan.cli import lab_notebook, lab_server
    from clachan.cli.progress import Progress

    book = lab_notebook.read(file)
    lab_notebook.set_parameters(book, parameter or [])
    written = output or file.with_name(f"{file.stem}-result.ipynb")
    with Progress(file.name) as progress:
        lab_notebook.run(book, lab_server.find(lab), kernel, written, progress.say)
    last = lab_notebook.last_result(book)
    if as_json:
        print(json.dumps({"result": str(written), "seconds": round(progress.elapsed(), 1), "last": last}, indent=2))
        return
    if last:
        from clachan.cli.output import clean

        print(clean(last, lines=True))
    print(f"result  {written}")
