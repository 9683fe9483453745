"""Trainings that are cut short, and go on."""

from helpers.callbacks import OFTEN

#: Two epochs of seven steps.
PRETRAIN = ("stage=pretrain", "trainer.max_epochs=2", "batches.batch_size=500", *OFTEN)
LORA = ("stage=lora", "digit=9", "trainer.max_steps=14", "trainer.val_check_interval=5", *OFTEN)
