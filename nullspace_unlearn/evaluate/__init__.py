"""Features of images, zero-shot accuracy on them, and what a request made of it.

`nsu.evaluate(model, data)` is `notebook.evaluate`.
"""

from nullspace_unlearn.callable_package import make_callable

make_callable(__name__)
