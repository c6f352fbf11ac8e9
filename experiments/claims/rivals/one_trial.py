"""The script that Syne Tune's local backend starts for every trial."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from experiments.claims.rivals.halved import one_trial

if __name__ == "__main__":
    values = json.loads(Path(sys.argv[sys.argv.index("--st_config_json_filename") + 1]).read_text(encoding="utf-8"))
    one_trial(values)
