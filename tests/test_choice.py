"""What is told of choices."""

from composed import logged

from lora_mnist.choice import Choice, format_choice, log_choices


def test_what_somebody_has_set_is_not_told():
    decided, command_line = (
        Choice(0.003, why="the first that is tried"),
        Choice(9, why="set on the command line", is_set=True),
    )
    with logged("lora_mnist.choice") as log:
        log_choices({"learning_rate": decided, "target": command_line})
    assert (
        format_choice("learning_rate", 0.1, "set on the command line")
        == "optimizer.lr=0.1: set on the command line"
    )  # in a pretraining, too
    assert log.getvalue() == "optimizer.lr=0.003: the first that is tried\n"
