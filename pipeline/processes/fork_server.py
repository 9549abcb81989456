"""Importing this makes a process end with its parent: the first thing for a fork server of `multiprocessing` to load.

By itself such a server ends when it next looks, which takes seconds while it imports torch.
"""

from pipeline.processes.child_processes import end_with_parent

end_with_parent()
