"""Commands of the ingest stage start where only its extra is installed."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "accelerate", "deepspeed", "transformers", "tensorflow")


@pytest.mark.parametrize("module", ["pipeline.__main__", "pipeline.inspection.inspect", "tokenize_offline.inspect"])
def test_ingest_and_inspect_load_nothing_that_the_ingest_extra_lacks(module: str):
    program = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
