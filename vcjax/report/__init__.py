"""What the command line and notebooks show: values as lines of text, tables, graphs and JSON.

Nothing here prints. Text is made of `Span`s (a piece of text and the name of a
style), so that the same lines go to a file, a pipe or, coloured, to a terminal.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
