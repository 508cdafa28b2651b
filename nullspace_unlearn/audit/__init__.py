"""What can still be recovered of what a model was made to forget, and what else it lost.

`nsu.audit(edited, original, data)` is `notebook.audit`, which shows what `door.audit` finds.
"""

from nullspace_unlearn.callable_package import make_callable

make_callable(__name__)
