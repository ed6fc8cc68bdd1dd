"""The role lab: converged by Ansible, JupyterLab started as its slot says, the notebooks run in it by the command's
own runner, on a real lake; their numbers are checked."""

import ast
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
from clachan.cli import lab_notebook
from clachan.cli.errors import CommandError
from clachan.cli.lab_kernel import Kernel
from clachan.cli.lab_server import Lab
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .test_roles import BIN, ROOT, Home

SECRET = "token-of-the-lab_0123456789"
NOTEBOOKS = ROOT / "roles/lab/files/notebooks"
PROXIES = {"http": "", "https": ""}
pytestmark = pytest.mark.slow


class Running:
    """A lab in its slot, and what its supervisor would know of it."""

    def __init__(self, home: Home, slot: Path) -> None:
        self.home, self.slot = home, slot
        self.process: subprocess.Popen[bytes] | None = None
        published = home.published(slot)
        self.lab = Lab("home.lab", published["url"], published["token"], published["certificate"])

    def service(self) -> dict[str, Any]:
        return json.loads((self.slot / "etc/services.d/lab.json").read_text())

    def environment(self) -> dict[str, str]:
        given = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(self.slot / "var")}
        return given | {"CLACHAN_SLOT": str(self.slot)}

    def start(self, ready: Callable[[], object] | None = None) -> "Running":
        service = self.service()
        # Jupyter does not serve as root, as which this test may run; a slot's user is none
        more = ["--allow-root"] if os.geteuid() == 0 else []
        with (self.slot / "log/lab.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*service["command"], *more],
                cwd=self.slot / service["directory"],
                stdout=log,
                stderr=log,
                env=self.environment() | service["environment"],
            )
        wait_for(ready or (lambda: self.answer("/login").status_code == 200), self.log, 60)
        return self

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def log(self) -> str:
        return (self.slot / "log/lab.log").read_text()

    def answer(self, path: str, token: str | None = None, **more: Any) -> requests.Response:
        headers = {"Authorization": f"token {token}"} if token else {}
        try:
            return requests.get(
                self.lab.base + path, headers=headers | more, timeout=30, allow_redirects=False, proxies=PROXIES
            )
        except requests.ConnectionError:
            return requests.Response()

    def kept(self, promise: str) -> "subprocess.CompletedProcess[str]":
        """As the agent checks it."""
        document = json.loads((self.slot / f"etc/promises.d/{promise}.json").read_text())
        return subprocess.run(
            document["command"],
            env=self.environment(),
            cwd=self.slot / "var",
            capture_output=True,
            text=True,
            timeout=document["timeout_seconds"],
            check=False,
        )

    def kernels(self) -> list[Any]:
        return self.lab.ask("GET", "/api/kernels")

    def run(self, name: str, *parameters: str, folder: Path) -> dict[str, Any]:
        """The notebook's own summary: the dict that it ends with."""
        book = lab_notebook.read(NOTEBOOKS / f"{name}.ipynb")
        lab_notebook.set_parameters(book, list(parameters))
        lab_notebook.run(book, self.lab, "science", folder / f"{name}.ipynb", lambda _state, _message: None)
        return ast.literal_eval(lab_notebook.last_result(book))


@pytest.fixture(scope="module")
def make_lab() -> Iterator[Callable[..., Running]]:
    """`make_lab(lab_memory_mib=512)`: in a home with a short path, as the kernels' sockets must fit in theirs."""
    folder = Path(tempfile.mkdtemp(prefix="lab"))
    made: list[Running] = []

    def make(**parameters: Any) -> Running:
        number = len(list(folder.iterdir()))
        home = Home(folder / str(number), f"127.78.{os.getpid() % 250}.{number + 1}")
        platform = home.directory / "collections/ansible_collections/clachan/platform"
        (platform / "files").symlink_to(ROOT / "files")
        for name in ("lab", "science"):
            (home.directory / "envs" / name).symlink_to(BIN.parent)
        parameters = {"lab_memory_mib": 1024, "lab_environments": []} | parameters
        slot = home.add("lab", 3, ["lab_token", "lab_lake_token"], lab_token=SECRET, **parameters)
        assert SECRET not in home.converge()
        made.append(Running(home, slot))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def running(make_lab: Callable[..., Running], server: Server) -> Running:
    return make_lab(lab_lake_url=server.url, lab_lake_token=TOKEN).start()


def test_a_second_run_changes_nothing(running: Running) -> None:
    assert "changed=0" in running.home.converge().partition("PLAY RECAP")[2]


def test_the_promises_hold_and_leave_no_kernel(running: Running) -> None:
    assert sorted(path.stem for path in (running.slot / "etc/promises.d").iterdir()) == [
        "answers",
        "reads_the_lake",
        "starts_a_kernel",
        "token_lasts",
    ]
    answers = json.loads((running.slot / "etc/promises.d/answers.json").read_text())
    assert requests.get(answers["url"], timeout=10, proxies=PROXIES).status_code == 200
    started = running.kept("starts_a_kernel")
    assert re.fullmatch(r"kernel science computed after \d+\.\d s\n", started.stdout), started.stderr
    read = running.kept("reads_the_lake")
    assert re.fullmatch(r"\d+ arrays, \d+ streams\n", read.stdout), read.stderr
    assert running.kernels() == []
    # a check that was killed leaves its kernel to the next one
    left = running.lab.ask("POST", "/api/kernels", {"name": "science"})["id"]
    (running.slot / "var/run/check.kernel").write_text(left)
    assert running.kept("starts_a_kernel").returncode == 0
    assert running.kernels() == []


def test_a_kernel_is_ready_in_time(running: Running) -> None:
    running.kept("starts_a_kernel")  # what is read from the disk is in memory then
    began = time.monotonic()
    with Kernel(running.lab, "science") as kernel:
        kernel.wait()
        assert time.monotonic() - began < 6, "expected under 3 s on a machine that does nothing else"


def test_who_has_no_token_gets_nothing(running: Running) -> None:
    for path in ("/api/kernels", "/api/contents", "/api/sessions", "/api/kernelspecs", "/lab/api/settings"):
        assert running.answer(path).status_code == 403, path
        assert running.answer(path, "wrong-token-of-the-lab").status_code == 403, path
        assert running.answer(path, SECRET).status_code == 200, path
    assert running.answer("/lab").headers["Location"] == "/login?next=%2Flab"


def test_a_login_leads_nowhere_else(running: Running) -> None:
    for target in ("//evil.example/x", "https://evil.example/x", "/\\evil.example", "///evil.example"):
        answer = running.answer(f"/login?next={target}", SECRET)
        assert answer.status_code == 302
        assert re.fullmatch(r"/(%5Cevil\.example)?", answer.headers["Location"]), target


def test_other_pages_cannot_use_it(running: Running) -> None:
    """Who has logged in has a cookie, which the browser also sends for other pages."""
    with requests.Session() as browser:
        browser.trust_env = False
        browser.get(running.lab.link, timeout=30)
        foreign = {"Origin": "https://evil.example"}
        url = running.lab.base + "/api/kernels"
        assert browser.get(url, timeout=30).status_code == 200
        read = browser.get(url, headers=foreign, timeout=30)
        assert (read.status_code, "Access-Control-Allow-Origin" in read.headers) == (404, False)
        made = browser.post(url, json={}, headers=foreign, timeout=30)
        assert made.status_code in {403, 404}
    assert running.answer("/api", SECRET, Host="evil.example").status_code == 403
    assert "frame-ancestors 'self'" in running.answer("/lab", SECRET).headers["Content-Security-Policy"]


def test_what_is_off_is_off(running: Running) -> None:
    assert running.answer("/api/terminals", SECRET).status_code == 404
    assert running.answer("/lab/api/news", SECRET).json() == {"news": []}
    assert running.answer("/lab/api/update", SECRET).json() == {"notification": None}
    found = running.answer("/api/kernelspecs", SECRET).json()
    assert (found["default"], list(found["kernelspecs"])) == ("science", ["science"])
    assert running.answer("/api/contents/..%2f..%2fetc", SECRET).status_code == 404
    assert SECRET not in running.log()
    assert SECRET not in " ".join(psutil.Process(running.process.pid).cmdline())


def test_it_listens_at_its_own_address_only(running: Running) -> None:
    slot = running.home.records["home.lab"]["clachan_instance"]["slot"]
    with Kernel(running.lab, "science") as kernel:
        kernel.wait()
        lab = psutil.Process(running.process.pid)
        assert listening(lab) == [(slot["addresses"]["ipv4"], slot["ports"]["first"])]
        (child,) = lab.children()
        # ipykernel takes there what its own children print, with a secret in front; nobody can read from it
        assert [address.ip for address in listening(child)] == ["127.0.0.1"]


def listening(process: psutil.Process) -> list[Any]:
    return [each.laddr for each in process.net_connections("inet") if each.status == "LISTEN"]


def said(kernel: Kernel, code: str) -> str:
    return "".join(
        output.get("text") or output.get("evalue") or output["data"]["text/plain"] for output in kernel.execute(code)
    )


def test_in_a_notebook_the_lake_is_one_line_away(running: Running, server: Server) -> None:
    with open_lake(server.socket, blobs=server.folder / "blobs") as lake, lake.transaction():
        lake.arrays.create("near/a", (1000,), "f8", units="V")[...] = np.arange(1000)
    with Kernel(running.lab, "science") as kernel:
        assert said(kernel, "from clachan_lake import open_lake; lake = open_lake()") == ""
        assert said(kernel, "print(lake.arrays['near/a'][:].sum())") == "499500.0\n"
        (shown,) = kernel.execute("lake.arrays['near/a']")
        assert "<svg" in shown["data"]["text/html"]
        assert TOKEN not in said(kernel, "print(dict(__import__('os').environ))")


@pytest.mark.heavy
def test_a_lake_that_comes_back_is_read_again(make_lab: Callable[..., Running], own_server: Server) -> None:
    own_server.start()
    lab = make_lab(lab_lake_url=own_server.url, lab_lake_token=TOKEN).start()
    with Kernel(lab.lab, "science") as kernel:
        assert said(kernel, "from clachan_lake import open_lake\nlake = open_lake()\nlen(lake.arrays)") == "0"
        own_server.stop()
        assert re.search(r"lake http://\S+: .*refused.*, expected an answer", said(kernel, "len(lake.arrays)"))
        assert lab.kept("reads_the_lake").returncode == 1
        own_server.start()
        assert said(kernel, "len(lake.arrays)") == "0"
    # another token of the lake, and one that is refused meanwhile: no restart, and the kernels' own goes on
    before = lab.service()
    own_server.token_file.write_text("another-token-of-the-lake\n")
    own_server.stop()
    own_server.start()
    lab.home.records["home.lab"]["lab_lake_scopes"] = ["read"]
    kept = (lab.slot / "etc/lake-token").read_text()
    lab.home.converge()
    assert (lab.slot / "etc/lake-token").read_text() == kept
    lab.home.records["home.lab"]["lab_lake_token"] = "another-token-of-the-lake"
    lab.home.converge()
    assert lab.service() == before
    assert (lab.slot / "etc/lake-token").read_text() != kept
    with Kernel(lab.lab, "science") as kernel:
        assert said(kernel, "from clachan_lake import open_lake\nlen(open_lake().arrays)") == "0"


def test_kernels_have_a_token_that_ends_and_is_renewed(make_lab: Callable[..., Running], server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        before = set(lake.tokens)
        lab = make_lab(lab_lake_url=server.url, lab_lake_token=TOKEN, lab_lake_token_seconds=60)
        [made] = set(lake.tokens) - before
        assert lake.tokens[made]["note"] == "lab home.lab"
        assert 0 < lake.tokens[made]["expires"] - time.time() * 1000 < 61_000
        lab.start()
        file = lab.slot / "etc/lake-token"
        first = file.read_text()
        held = [path.read_bytes() for path in lab.slot.rglob("*") if path.is_file()]
        assert not [content for content in held if TOKEN.encode() in content]
        promise = json.loads((lab.slot / "etc/promises.d/token_lasts.json").read_text())
        assert (promise["kind"], promise["path"], promise["max_seconds"]) == ("file_age", "etc/lake-token", 30)
        with Kernel(lab.lab, "science") as kernel:
            count = "from clachan_lake import open_lake\nlen(open_lake().arrays)"
            found = said(kernel, count)
            # the notebook sleeps for longer than half of its life
            os.utime(file, (time.time() - 31,) * 2)
            lab.home.converge()
            assert file.read_text() != first
            lake.tokens.revoke(made)
            assert said(kernel, count) == found


def test_behind_tls(make_lab: Callable[..., Running], tmp_path: Path) -> None:
    lab = make_lab(lab_tls=True)
    assert lab.lab.url.startswith("https://")
    assert (lab.slot / "var/key.pem").stat().st_mode & 0o777 == 0o600
    assert "changed=0" in lab.home.converge().partition("PLAY RECAP")[2]
    lab.start(ready=lambda: "is running at" in lab.log())
    # the promises and the command line trust its certificate, and no other
    started = lab.kept("starts_a_kernel")
    assert re.fullmatch(r"kernel science computed after \d+\.\d s\n", started.stdout), started.stderr
    with Kernel(lab.lab, "science") as kernel:
        assert said(kernel, "print(6 * 7)") == "42\n"
    with pytest.raises(CommandError, match="CERTIFICATE_VERIFY_FAILED"):
        replace(lab.lab, certificate="").ask("GET", "/api/kernels")
    plain = replace(lab.lab, url=lab.lab.url.replace("https:", "http:"))
    with pytest.raises(CommandError, match="expected an answer from http://"):
        plain.ask("GET", "/api/kernels")


def test_a_token_that_may_make_no_others_is_refused(make_lab: Callable[..., Running], server: Server) -> None:
    with open_lake(server.url, token=TOKEN) as lake:
        reader = lake.tokens.create(scopes=["read"])[1]
    with pytest.raises(AssertionError, match=r"expected lab_lake_token to be one that may make others \(scope admin\)"):
        make_lab(lab_lake_url=server.url, lab_lake_token=reader)
    lab = make_lab(lab_lake_url=server.url, lab_lake_token=reader, lab_lake_token_seconds=0)
    assert (lab.slot / "etc/lake-token").read_text() == reader + "\n"


def test_products_of_matrices_do_not_hang_when_memory_is_scarce(make_lab: Callable[..., Running]) -> None:
    """OpenBLAS tries for ever to get its buffer; the kernels have it from their start."""
    lab = make_lab(lab_memory_mib=512).start()
    code = """
import resource
import numpy as np
import scipy.linalg
a = np.ones((300, 300))
used = int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmData")))
held = np.empty((resource.getrlimit(resource.RLIMIT_DATA)[0] >> 10) - used - 12000 << 10, "u1")
print((a @ a)[0, 0], scipy.linalg.blas.dgemm(1.0, a, a)[0, 0])
"""
    with Kernel(lab.lab, "science") as kernel:
        assert "".join(output["text"] for output in kernel.execute(code, time.monotonic() + 90)) == "300.0 300.0\n"


def test_the_recording(running: Running, tmp_path: Path, server: Server) -> None:
    found = running.run("waveform", "seconds=20", folder=tmp_path)
    assert found["samples"] == 20 * 48_000
    assert found["tones_hz"] == [440, 1000, 5000]
    assert found["peak_hz"] == 440
    assert 0.85 < found["loudest"] < 0.9
    assert found["written"] is True
    with open_lake(server.url, token=TOKEN) as lake:
        kept = lake.arrays["sound/spectrogram"]
        assert kept.shape == (found["columns"], 1025)
        assert (kept.units, kept.attrs["source"]) == ("dB", "three-tones-20s.wav")
        # the second half has 1 kHz, the first has not
        row = round(1000 / kept.attrs["bin_hz"])
        levels = kept[:, row]
        assert levels[: len(levels) // 2 - 20].max() < -40
        assert levels[len(levels) // 2 + 20 :].min() > -20
    # the picture of the page: three of matplotlib and that of the array
    book = json.loads((tmp_path / "waveform.ipynb").read_text())
    pictures = [
        output for cell in book["cells"] for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    # a second run reads the recording that is there, and replaces the result
    assert running.run("waveform", "seconds=20", folder=tmp_path) == found


def test_time_travel(running: Running, tmp_path: Path) -> None:
    found = running.run("time_travel", folder=tmp_path)
    assert (found["rows_before"], found["rows_now"], found["kept"]) == (24, 48, True)
    assert found["mean_before"] == pytest.approx(12)
    assert found["mean_now"] == pytest.approx(13.5)


@pytest.mark.heavy
@pytest.mark.long
def test_learning_from_four_times_the_memory(make_lab: Callable[..., Running], server: Server, tmp_path: Path) -> None:
    lab = make_lab(lab_lake_url=server.url, lab_lake_token=TOKEN, lab_memory_mib=512).start()
    found = lab.run("fitting", folder=tmp_path)
    assert (found["limit_mib"], found["array_mib"]) == (512, 4 * 512)
    assert found["mean"] == pytest.approx(found["expected_mean"], abs=0.01)
    assert found["middles_within"] < 0.3
    assert found["score"] > 0.99
    assert found["explained"] > 0.9
    assert found["allocated_mib"] < 512
    with Kernel(lab.lab, "science") as kernel:
        code = "from clachan_lake import open_lake\nopen_lake().arrays['fitting/rows'][:]"
        assert "Unable to allocate 2.00 GiB" in said(kernel, code)
        assert said(kernel, "1 + 1") == "2"


def test_a_cell_that_fails_ends_the_run_and_is_in_the_result(running: Running, tmp_path: Path) -> None:
    book = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": []}
    for source in ("a = 1", "print('so far')\n1 / 0", "never = 1"):
        book["cells"].append({"cell_type": "code", "metadata": {}, "source": source})
    steps: list[str] = []
    result = tmp_path / "r.ipynb"
    with pytest.raises(CommandError, match=r"^cell 2: ZeroDivisionError: division by zero, see .*r\.ipynb$"):
        lab_notebook.run(book, running.lab, "science", result, lambda state, _message: steps.append(state))
    assert steps == ["starting the kernel", "cell 1 of 3", "cell 2 of 3"]
    kept = json.loads(result.read_text())["cells"]
    assert [cell["execution_count"] for cell in kept] == [1, 2, None]
    assert kept[1]["outputs"][0] == {"output_type": "stream", "name": "stdout", "text": "so far\n"}
    assert kept[1]["outputs"][1]["ename"] == "ZeroDivisionError"
    assert running.kernels() == []


def test_a_kernel_that_dies_is_told(running: Running) -> None:
    with (
        pytest.raises(CommandError, match=r"^kernel science: died, perhaps of memory, expected it to run the cell$"),
        Kernel(running.lab, "science") as kernel,
    ):
        list(kernel.execute("import os; os.kill(os.getpid(), 9)"))
    assert running.kernels() == []
    with pytest.raises(CommandError, match=r"^lab home\.lab: POST /api/kernels: status 5?0?0?4?0?4?.*"):
        Kernel(running.lab, "nothing").__enter__()


@pytest.mark.heavy
def test_a_killed_lab_has_lost_no_file(make_lab: Callable[..., Running]) -> None:
    lab = make_lab()
    settings = [path for path in (lab.slot / "etc").rglob("*") if path.is_file()]
    lab.start()
    file = lab.slot / "var/home" / "mine <b>.ipynb"
    cell = {"cell_type": "code", "metadata": {}, "source": "1", "outputs": [], "execution_count": None}
    book = {"nbformat": 4, "nbformat_minor": 4, "metadata": {}, "cells": [cell]}
    lab.lab.ask("PUT", "/api/contents/mine%20%3Cb%3E.ipynb", {"type": "notebook", "content": book})
    with Kernel(lab.lab, "science") as kernel:
        kernel.wait()
        (child,) = psutil.Process(lab.process.pid).children()
        lab.process.kill()
        lab.process.wait()
        with pytest.raises(CommandError, match="expected it to stay while the notebook runs"):
            list(kernel.execute("1"))
    lab.start()
    # a slot's user could not write there, and Jupyter would not start
    assert [path for path in (lab.slot / "etc").rglob("*") if path.is_file()] == settings
    assert json.loads(file.read_text())["cells"][0]["source"] == ["1"]
    assert lab.kept("starts_a_kernel").returncode == 0
    wait_for(lambda: not child.is_running(), "the end of a kernel whose server is gone")


def test_examples_are_kept_as_they_are(running: Running) -> None:
    kept = running.answer("/api/contents/examples/waveform.ipynb", SECRET).json()
    assert os.geteuid() == 0 or kept["writable"] is False
    mode = (running.slot / "var/home" / "examples/waveform.ipynb").stat().st_mode & 0o777
    assert mode == 0o440
    for path in NOTEBOOKS.iterdir():
        assert all(not cell.get("outputs") for cell in json.loads(path.read_text())["cells"])


def test_without_a_lake_there_is_no_promise_of_one(make_lab: Callable[..., Running]) -> None:
    lab = make_lab()
    assert not (lab.slot / "etc/promises.d/reads_the_lake.json").exists()
    kernel = json.loads((lab.slot / "etc/data/kernels/science/kernel.json").read_text())
    assert not [name for name in kernel["env"] if name.startswith("CLACHAN_")]


@pytest.mark.heavy
def test_the_former_lock_brings_the_former_environment_back(make_lab: Callable[..., Running]) -> None:
    """Of locks without packages; the platform's `clachan-lake` is added to each."""
    lab = make_lab()
    link = lab.slot / "var/environments/mine"

    def converge(lock: str) -> str:
        lab.home.records["home.lab"]["lab_environments"] = [{"name": "mine", "lock": lock}]
        said = lab.home.converge()
        assert (link / "lib").is_dir()
        assert [path.name for path in link.glob("lib/python3*/site-packages/clachan_lake")] == ["clachan_lake"]
        return said

    converge("# one {{ 7 * 6 }} $HOME\n")
    first = os.readlink(link)
    assert re.fullmatch(r"mine-[0-9a-f]{12}", first)
    assert (lab.slot / "etc/environments/mine.txt").read_text() == "# one {{ 7 * 6 }} $HOME\n"
    kernel = json.loads((lab.slot / "etc/data/kernels/mine/kernel.json").read_text())
    assert kernel["argv"][2] == f"{link}/bin/python"
    converge("# two\n")
    second = os.readlink(link)
    assert second != first
    made = (link.parent / first / "clachan-environment").stat().st_mtime_ns
    converge("# one {{ 7 * 6 }} $HOME\n")
    assert os.readlink(link) == first
    assert (link / "clachan-environment").stat().st_mtime_ns == made
