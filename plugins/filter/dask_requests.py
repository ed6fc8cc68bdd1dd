# Copyright: (c) The Clachan maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a Dask cluster requests: its scheduler, and workers that speak with it."""

from __future__ import annotations

DOCUMENTATION = r"""
name: dask_requests
short_description: The child requests of a Dask cluster
author:
  - The Clachan maintainers (@clachan)
description:
  - Gives the complete set of child requests of an instance of the software P(clachan.platform.dask#role), by name.
  - C(scheduler) is an instance of the software P(clachan.platform.dask_scheduler#role); the workers V(w1) to V(wN) are
    instances of the software P(clachan.platform.dask_worker#role), spread over the nodes. They wait for what the
    scheduler publishes.
options:
  _input:
    description: The variable C(clachan_instance) of the cluster.
    type: dict
    required: true
  wanted:
    description: The cluster's options, without their prefix.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Describe the cluster
  clachan.platform.slot:
    requests: "{{ clachan_instance | clachan.platform.dask_requests(wanted) }}"
"""

RETURN = r"""
_value:
  description: Requests by name, for the option RV(ignore:requests) of the module P(clachan.platform.slot#module).
  type: dict
"""

SCHEDULER = "scheduler"


def dask_requests(instance, wanted):
    requests = {
        SCHEDULER: {
            "software": "clachan.platform.dask_scheduler",
            "parameters": {
                "dask_scheduler_memory_mib": wanted["scheduler_memory_mib"],
                "dask_scheduler_workers": wanted["workers"],
                "dask_scheduler_minimum_workers": wanted["minimum_workers"],
                "dask_scheduler_idle_seconds": wanted["idle_seconds"],
                "dask_scheduler_seconds": wanted["seconds"],
                "dask_scheduler_price": wanted["price"],
            },
        }
    }
    source = "%s.%s" % (instance["path"], SCHEDULER)
    for number in range(1, wanted["workers"] + 1):
        requests["w%d" % number] = {
            "software": "clachan.platform.dask_worker",
            "parameters": {
                "dask_worker_number": number,
                "dask_worker_scheduler": {"from": source, "key": "address"},
                "dask_worker_sizing": {"from": source, "key": "sizing"},
                "dask_worker_credential": {"from": source, "key": "credential"},
                "dask_worker_threads": wanted["threads"],
                "dask_worker_memory_mib": wanted["memory_mib"],
            },
            "placement": {"spread": True},
        }
    return requests


class FilterModule:
    def filters(self):
        return {"dask_requests": dask_requests}
