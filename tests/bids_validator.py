"""The official BIDS validator."""

import json
import subprocess
import sys
from pathlib import Path


def bids_errors(folder: Path) -> list[str]:
    """What the validator calls errors in a dataset."""
    validator = Path(sys.executable).with_name("bids-validator-deno")
    done = subprocess.run([validator, "--format", "json", folder], capture_output=True, text=True, timeout=300)
    assert done.stdout, done.stderr
    issues = json.loads(done.stdout)["issues"]["issues"]
    return [f"{i['code']} {i.get('subCode', '')} {i.get('location', '')}" for i in issues if i["severity"] == "error"]
