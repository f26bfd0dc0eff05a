"""What a model's child process loads besides the model: memory on every device."""

import os
import subprocess
import sys


def test_the_child_loads_no_http_client_and_no_openssl() -> None:
    code = (
        "import sys, slmops.runtimes.worker, slmops.runtimes.llamacpp;"
        "print({'httpx', 'ssl', '_hashlib'} & set(sys.modules))"
    )
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code],
        # A coverage tool in the child would count its own imports.
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "set()\n"
