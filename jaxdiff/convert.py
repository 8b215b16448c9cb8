"""`python -m jaxdiff.convert`, another name of `jaxdiff convert`."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    runpy.run_module("jaxdiff", run_name="__main__", alter_sys=True)
