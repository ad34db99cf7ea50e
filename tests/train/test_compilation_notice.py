"""A line before every batch that is compiled."""

from types import SimpleNamespace

import mindspore as ms
import numpy as np

from mindgpt.train.compilation_notice import CompilationNotice


def lines(capsys, callback, shapes, kind="train", sink=False):
    for number, shape in enumerate(shapes, start=1):
        element = (np.zeros(shape, np.int32),)
        state = SimpleNamespace(cur_step_num=number, dataset_sink_mode=sink, **{f"{kind}_dataset_element": element})
        getattr(callback, f"on_{kind}_step_begin")(SimpleNamespace(original_args=lambda state=state: state))
    return capsys.readouterr().out.splitlines()


def test_training_announces_each_shape_but_the_first(capsys):
    callback = CompilationNotice(already_announced=True)
    shapes = [(8, 32), (8, 32), (8, 96), (8, 32), (8, 96), (3, 96)]
    assert lines(capsys, callback, shapes) == [
        "step 3: the first 8 rows of 96 tokens, compiling",
        "step 6: the first 3 rows of 96 tokens, compiling",
    ]
    assert lines(capsys, callback, shapes) == []
    assert lines(capsys, callback, [(1, 1)], sink=True) == []


def test_evaluation_announces_each_shape_once(capsys):
    callback = CompilationNotice()
    shapes = [(8, 32), (8, 96), (8, 32)]
    assert lines(capsys, callback, shapes, "eval") == [
        "evaluation, batch 1: the first 8 rows of 32 tokens, compiling",
        "evaluation, batch 2: the first 8 rows of 96 tokens, compiling",
    ]
    assert lines(capsys, callback, shapes, "eval") == []


def test_pynative_mode_compiles_nothing(capsys):
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        assert lines(capsys, CompilationNotice(), [(8, 32)]) == []
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
