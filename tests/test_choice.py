"""What is told of choices."""

from composed import logged

from lora_mnist.choice import Choice, format_choice, log_choices


def test_what_somebody_has_set_is_not_told():
    decided, typed = (
        Choice(0.003, why="the first that is tried"),
        Choice(9, why="typed", is_set=True),
    )
    with logged("lora_mnist.choice") as log:
        log_choices({"learning_rate": decided, "target": typed})
    assert (
        format_choice("learning_rate", 0.1, "typed") == "optimizer.lr=0.1: typed"
    )  # in a pretraining, too
    assert log.getvalue() == "optimizer.lr=0.003: the first that is tried\n"
