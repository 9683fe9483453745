"""Lightning callbacks that end a run early, or change its base."""

import os
import signal

from lightning.pytorch import Callback

CRASH = "+callbacks.crash._target_=helpers.callbacks.Crash"
#: A checkpoint after each step.
OFTEN = (
    "callbacks.checkpoint.every_n_train_steps=1",
    "callbacks.checkpoint.train_time_interval=null",
)


class Crashed(BaseException):
    """Stands for the end of the process: nothing may catch it."""


class Crash(Callback):
    """Ends the run before a step, counted from 0 over all epochs.

    Which one, and how, stands in the environment, so that the command that goes on is the same:
    ``CRASH=30`` raises, ``CRASH=30:SIGKILL`` sends the process a signal, ``CRASH=30@2`` raises in
    the second training.
    """

    trainings = 0  # that this process has begun

    def on_fit_start(self, trainer, pl_module):
        Crash.trainings += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        when, _, name = os.environ.get("CRASH", "-1").partition(":")
        step, _, training = when.partition("@")
        if trainer.global_step == int(step) and training in ("", str(Crash.trainings)):
            if not name:
                raise Crashed
            os.kill(os.getpid(), getattr(signal, name))


class Spoil(Callback):
    """Changes a tensor of the base after the last step."""

    def on_train_end(self, trainer, pl_module):
        pl_module.net.get_parameter("linear1.bias").data[0] += 1e-6
