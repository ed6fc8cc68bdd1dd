"""All tests of the distribution `clachan` may `import live`: a real controller to work against."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
