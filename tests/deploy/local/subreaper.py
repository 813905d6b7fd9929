"""A keeper to which orphans come, as they come to the first process of a container."""

import ctypes
import sys

from deploy.local.keeper import main

PR_SET_CHILD_SUBREAPER = 36

if __name__ == "__main__":
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1) == 0
    sys.exit(main())
