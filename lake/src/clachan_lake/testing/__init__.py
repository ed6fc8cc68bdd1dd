"""What a lake must do on every storage, as tests that ship with it.

    from clachan_lake.testing import LakeContract

    class TestMyStorage(LakeContract):
        @pytest.fixture
        def open_session(self):
            ...
            yield open_one

`open_session` is a callable without arguments: each call opens another session of one lake (a LocalLake), at the newest
commit, and may be made in any thread. A test closes every session that it opens; when all are closed, the next call
must find what was committed. The lake may hold other things: each test takes names of its own.

Nothing here needs pytest. A storage without blobs is a lake too: its chunks are bytes in records.
"""

from clachan_lake.database import database
from clachan_lake.local import LocalLake
from clachan_lake.storage.memory import MemoryStorage
from clachan_lake.testing.arrays import ArrayContract
from clachan_lake.testing.history import HistoryContract
from clachan_lake.testing.sessions import OpenSession, new_name, raising
from clachan_lake.testing.streams import StreamContract
from clachan_lake.testing.writers import WriterContract

__all__ = ["LakeContract", "OpenSession", "memory_lake", "new_name", "raising"]


def memory_lake() -> LocalLake:
    """An empty lake in memory, for tests of programs that use one: all of it but blobs; closed, it is gone."""
    return LocalLake(database(MemoryStorage()))


class LakeContract(StreamContract, ArrayContract, WriterContract, HistoryContract):
    """All of them."""
