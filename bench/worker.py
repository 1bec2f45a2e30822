"""Entry point by which `bench check` starts a measuring process with the code of any commit.

The name of this module and `serve` can never change: older and newer commits are started by it too.
"""

from bench.sides.host import serve as serve
