"""The notebook `away`: sent by one kernel, found by another, by a worker and by a Dask cluster."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clachan_lake.opening import open_lake

from .making import TOKEN, Server, wait_for
from .test_job_dask import Cluster
from .working import WorkerProcess

NOTEBOOK = Path(__file__).resolve().parents[2] / "roles/lab/files/notebooks/away.ipynb"
pytestmark = pytest.mark.slow
pytest.importorskip("sklearn", reason="this machine cannot: scikit-learn is not installed")


def cells(**parameters: Any) -> list[str]:
    """The notebook's code, its parameters set behind those that it has."""
    found = []
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            found.append("".join(cell["source"]))
            if "parameters" in cell["metadata"].get("tags", []):
                found.append("".join(f"{name} = {value!r}\n" for name, value in parameters.items()))
    return found


def kernel(server: Server, folder: Path, code: list[str]) -> "subprocess.Popen[str]":
    file = folder / f"kernel-{time.monotonic_ns()}.py"
    file.write_text("\n\n".join(code))
    known = {"CLACHAN_LAKE": server.url, "CLACHAN_LAKE_TOKEN_FILE": str(server.token_file)}
    return subprocess.Popen(
        [sys.executable, str(file)], stdout=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, **known}
    )


def finished(process: "subprocess.Popen[str]") -> dict[str, Any]:
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0
    return json.loads(said.splitlines()[-1])


@pytest.mark.heavy
def test_a_search_is_found_by_another_kernel(server: Server, tmp_path: Path) -> None:
    """The first one is gone before there is a worker."""
    sender = kernel(server, tmp_path, [*cells()[:3], "import time\nprint('sent', flush=True)\ntime.sleep(300)"])
    assert sender.stdout
    wait_for(lambda: "sent" in sender.stdout.readline(), "submission", 90)
    sender.kill()
    sender.communicate()
    worker = WorkerProcess(server, tmp_path / "worker", processes=2)
    try:
        found = finished(kernel(server, tmp_path, [*cells(), "import json\nprint(json.dumps(results))"]))
    finally:
        worker.stop()
    assert (found["attempt"], found["C"], found["same"]) == (1, 0.01, True)
    assert 0.8 < found["score"] < 1
    assert found["log"] == "the best of 3 is {'C': 0.01}"
    with open_lake(server.url, token=TOKEN) as lake:
        assert [item["id"] for item in lake.jobs.items_of() if item["name"] == "away/search"] == [found["job"]]
        assert not [item for item in lake.jobs.items_of() if item["name"] == "joblib"]


def test_on_a_dask_cluster(server: Server, tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    worker = WorkerProcess(server, tmp_path / "worker", processes=2)
    code = cells(name="away/dask", scheduler=cluster.address)
    # without the part that has nothing to do with the cluster
    short = [*code[:4], "import json\nprint(json.dumps({'C': best['C'], 'scheduler': job.document['scheduler']}))"]
    try:
        found = finished(kernel(server, tmp_path, short))
    finally:
        worker.stop()
        cluster.close()
    assert found == {"C": 0.01, "scheduler": cluster.address}
