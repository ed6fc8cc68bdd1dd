"""The jobs of a lake, by where it is."""

from clachan_lake.interface import Lake
from clachan_lake.jobs.job import Jobs


def jobs_of(lake: Lake) -> Jobs:
    from clachan_lake.remote import RemoteLake

    if isinstance(lake, RemoteLake):
        from clachan_lake.jobs.remote import RemoteJobs

        return RemoteJobs(lake)
    from clachan_lake.jobs.local import LocalJobs
    from clachan_lake.local import LocalLake

    if not isinstance(lake, LocalLake):
        raise TypeError(f"lake: {type(lake).__name__}, expected one that is open here or at a URL")
    return LocalJobs(lake)
