"""Says what is missing, and how to have it, before an import fails. Standard library only."""

import importlib.util
import sys


def modules(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"{sys.argv[0]} needs {', '.join(missing)}, which {sys.executable} does not have.\n"
                 "deploy/install_packages.sh train installs all of it for Debian's Python: run it with /usr/bin/python3.")
