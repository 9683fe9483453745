"""The studies: what they run composes."""

import jobs
import repair
import tasks

ALL_TASKS = [*tasks.SEARCH, *tasks.TASKS]


def test_every_task_and_every_method_composes():
    for task in ALL_TASKS:
        assert task.pictures in ("", *tasks.PICTURES)
        images = "data=folder" if task.pictures else "data=mnist"
        pretrain = ("stage=pretrain", *task.pretrain.split())
        jobs.composed([images, *task.settings.split(), *pretrain])
    for settings in repair.METHODS.values():
        cfg = jobs.composed(["target=1", *settings.split()])
        if cfg.trainer.max_steps == 400:
            assert cfg.data.batch_size + cfg.data.replay == 100


def test_the_tables_bases_were_never_searched_on():
    assert len({task.seed for task in ALL_TASKS}) == len(ALL_TASKS)
