"""Real systemd machines for tests: Debian 12 in systemd-nspawn, on one host, as root.

base       a Debian root file system, made once with mmdebstrap and kept
layer      what a preparation wrote over the base, kept, so that many machines start from it
lab        a bridge in a network namespace and the machines on it; labs do not see each other
machine    an overlay over base and layers, in its own network namespace and cgroups, with systemd as process 1
wheelhouse the wheels of the lock files, made on the host and bound into machines: they have no way out

Everything lives below CLACHAN_TESTBED (default /var/tmp/clachan-testbed). Only processes that a lab started are ended,
by number and start time. The standard library is enough; `lab.py` is the command.
"""
