"""Ways of reading that end badly, for reader processes to run; which one is in the episode's `language`."""

import os
import signal
from pathlib import Path

from pipeline.common.errors import ConfigError
from tokenize_offline.clips.decode import read_clips


def read(episode, clips, views, held_out_share, side):
    what, _, argument = episode.language.partition(" ")
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "kill-once" and not Path(argument).exists():
        Path(argument).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise ConfigError("not this way")
    if what == "fail":
        raise KeyError("a mistake in the code")
    return read_clips(episode, clips, views, held_out_share, side)
