"""What results.json says: the rows of the table of classes, on made-up runs."""

from helpers.runs import outcome, repaired, results

from lora_mnist.show.run_results import RunResults, format_p_value


def names_of_rows(run):
    return [row.name for row in RunResults(run).build_rows()]


def make_repair(base, broken, fixed, classes, targets=(0,)):
    each = {"test": repaired(base, broken, fixed), "test_base": outcome(base)}
    return results(**each, classes=classes, targets=list(targets))


def test_digits_are_the_ten_of_them():
    """Classes that are called 0 and 1 are somebody's own."""
    for classes, name, others in (("01", "0", "classes"), ("0123456789", "zeros", "digits")):
        each = [1] * len(classes)
        run = RunResults(make_repair(each, each, each, [*classes]))
        assert (run.name_classes([0]), run.other_classes_name) == (name, f"the other {others}")


def test_rows_of_many_classes_show_a_dozen_that_changed_or_are_worst():
    count = 1000
    broken, fixed = [0] * count, [0] * count
    fixed[60], broken[70], broken[80], fixed[80] = 1, 3, 1, 1
    names = [f"c{n}" for n in range(count)]
    run = make_repair([1] * count, broken, fixed, names, [7, 50])
    rows = names_of_rows(run)
    assert rows[:5] == ["c7", "c50", "c70", "c80", "c60"]
    assert (len(rows), *rows[-2:]) == (12, "990 others", "all")
    alone = {**run, "stage": "eval", "point": None, "targets": []}
    alone["test"] = outcome([*range(count)], count)
    assert names_of_rows(alone) == [*names[:-11:-1], "990 others", "all"]
    eleven = make_repair([5] * 11, [0] * 11, [1] * 11, [*"abcdefghijk"])
    assert names_of_rows(eleven) == [*"abcdefghijk", "all"]


def test_chance_text_never_rounds_a_difference_to_significance():
    assert format_p_value(1e-9) == "p < 0.001"
    assert format_p_value(0.05) == "p = 0.05"
    assert format_p_value(0.0500001) == "may be chance, p = 0.0500001"
