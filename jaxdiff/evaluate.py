"""`python -m jaxdiff.evaluate`, another name of `jaxdiff evaluate`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "evaluate")
    runpy.run_module("jaxdiff", run_name="__main__", alter_sys=True)
