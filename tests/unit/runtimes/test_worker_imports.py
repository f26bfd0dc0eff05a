"""What a model's child process loads besides the model: memory on every device."""

import subprocess
import sys


def test_the_child_loads_no_http_client() -> None:
    code = "import sys, slmops.runtimes.worker; print('httpx' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "False\n"
