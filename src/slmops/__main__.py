"""`python -m slmops` is the `slmops` command."""

from slmops.cli.main import main

if __name__ == "__main__":
    main()
