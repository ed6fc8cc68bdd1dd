"""What keeps a lake's records and blobs: a folder, which readers may follow, or PostgreSQL with a shared folder."""
