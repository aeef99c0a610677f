"""The command line: one file per command. Only this package prints and reads the environment.

Importing it, and every command, is cheap: tensorstore is loaded when a
repository is opened, JAX when arrays are touched.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
