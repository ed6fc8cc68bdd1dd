# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from ansible_collections.clachan.platform.plugins.filter.dask_requests import FilterModule, dask_requests

WANTED = {
    "workers": 3,
    "minimum_workers": 1,
    "idle_seconds": 60,
    "seconds": 3600,
    "price": 0.5,
    "threads": 2,
    "memory_mib": 2048,
    "scheduler_memory_mib": 300,
}


def test_a_scheduler_and_workers_that_wait_for_it():
    found = dask_requests({"path": "home.dask"}, WANTED)
    assert list(found) == ["scheduler", "w1", "w2", "w3"]
    assert found["scheduler"] == {
        "software": "clachan.platform.dask_scheduler",
        "parameters": {
            "dask_scheduler_memory_mib": 300,
            "dask_scheduler_workers": 3,
            "dask_scheduler_minimum_workers": 1,
            "dask_scheduler_idle_seconds": 60,
            "dask_scheduler_seconds": 3600,
            "dask_scheduler_price": 0.5,
        },
    }
    assert found["w3"] == {
        "software": "clachan.platform.dask_worker",
        "parameters": {
            "dask_worker_number": 3,
            "dask_worker_scheduler": {"from": "home.dask.scheduler", "key": "address"},
            "dask_worker_sizing": {"from": "home.dask.scheduler", "key": "sizing"},
            "dask_worker_credential": {"from": "home.dask.scheduler", "key": "credential"},
            "dask_worker_threads": 2,
            "dask_worker_memory_mib": 2048,
        },
        "placement": {"spread": True},
    }


def test_fewer_workers_leave_the_others_as_they_are():
    three = dask_requests({"path": "home.dask"}, WANTED)
    one = dask_requests({"path": "home.dask"}, dict(WANTED, workers=1))
    assert list(one) == ["scheduler", "w1"]
    assert one["w1"] == three["w1"]


def test_its_name():
    assert FilterModule().filters() == {"dask_requests": dask_requests}
