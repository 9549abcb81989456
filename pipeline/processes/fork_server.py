"""Importing this module makes a process end with its parent; a fork server of `multiprocessing` loads it first.

Otherwise such a server only ends at its next check, seconds later while it imports torch.
"""

from pipeline.processes.child_processes import end_with_parent

end_with_parent()
