"""The tests here read the repository; `house` lists its files and imports, `testbed` boots machines."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
