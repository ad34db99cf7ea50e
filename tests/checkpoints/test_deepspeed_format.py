"""DeepSpeed's folders give the weights of the whole file; nothing in them is run."""

import collections
import json
import pickle
import shutil

import pytest
import torch

from mindgpt.checkpoints.formats import open_source
from mindgpt.checkpoints.restricted_unpickling import Inert, load_without_code
from mindgpt.checkpoints.weights import open_weights
from mindgpt.config.errors import UserError
from mindgpt.models.gpt2 import convert_weight
from tests.checkpoints.deepspeed_folders import groups_of, part_2, part_3, save, write_zero
from tests.checkpoints.uer_models import JSON, TOKENS, V, state, write_model

HEAD, WORD = "target.lm.output_layer.weight", "embedding.word.embedding.weight"


def assert_holds(path, wanted) -> None:
    source = open_source(path)
    assert source.entries.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert source.entries[name].shape == tuple(tensor.shape), name
        assert torch.equal(torch.from_numpy(source.read(name)), tensor), name


@pytest.mark.parametrize("world", [1, 2, 4, 11])  # of 11, a sort by name would put rank 10 before 2
@pytest.mark.parametrize("stage", [2, 3])
def test_the_same_weights_as_the_whole_file(tmp_path, stage, world):
    held = state()
    folder = write_zero(tmp_path / "out", held, stage, world, {HEAD: WORD})
    assert_holds(folder, held)
    assert_holds(folder / "250000", held)


def test_tiny_example_by_hand(tmp_path):
    """Group A [3], B [4] on two ranks: which number lies where."""
    group = {"A": torch.tensor([1.0, 2, 3]), "B": torch.tensor([4.0, 5, 6, 7])}
    assert part_2(group, 0, 2).tolist() == [1, 2, 3, 4] and part_2(group, 1, 2).tolist() == [5, 6, 7]
    assert part_3([group], 0, 2).tolist() == [1, 2, 4, 5] and part_3([group], 1, 2).tolist() == [3, 777, 6, 7]


def test_a_run_opens_the_folder_with_config_and_vocabulary(tmp_path):
    write_model(tmp_path, state())
    folder = write_zero(tmp_path / "out", state(), 2, 2, {HEAD: WORD})
    for name in ("config.json", "vocab.txt"):
        shutil.copy(tmp_path / name, folder / name)
    weights, whole = open_weights(folder), open_weights(tmp_path / "model.bin")
    assert weights.config == whole.config and weights.config.vocab_size == len(TOKENS)
    assert all((weights.source.read(name) == whole.source.read(name)).all() for name in whole.source.entries)


@pytest.mark.parametrize("inside", [True, False])
def test_config_and_vocabulary_of_a_copied_tag_folder(tmp_path, inside):
    """They may lie among its files; those inside are its own, whatever lies beside the folder."""
    write_model(tmp_path / "whole", state())
    tag = write_zero(tmp_path / "out", state(), 2, 2, {HEAD: WORD}) / "250000"
    (tmp_path / "out" / "config.json").write_text(json.dumps(JSON | ({"heads_num": 6} if inside else {})))
    for name in ("config.json", "vocab.txt"):
        shutil.copy(tmp_path / "whole" / name, (tag if inside else tag.parent) / name)
    convert_weight.main(["--input_path", str(tag), "--output_path", str(tmp_path / "x.ckpt")])
    assert open_weights(tmp_path / "x.ckpt").config == open_weights(tmp_path / "whole" / "model.bin").config
    assert (tmp_path / "vocab.txt").read_bytes() == (tmp_path / "whole" / "vocab.txt").read_bytes()


def test_without_shared_params_the_head_is_the_word_table(tmp_path):
    """Until DeepSpeed 0.9 the second name of the table is absent."""
    held = {name: tensor for name, tensor in state().items() if name != HEAD}
    folder = write_zero(tmp_path / "out", held, 2, 2, {})
    weights = open_weights(folder)
    assert "head.weight" not in weights.source.entries and weights.source.untied is False


def edit(file, change) -> None:
    """Change the content of a file of DeepSpeed."""
    content = load_without_code(file)
    change(content)
    for value in content.values():
        if isinstance(value, dict):
            value.pop("loss_scaler", None)
            value.pop("zero_stage", None)
    content.pop("loss_scaler", None)
    torch.save(content, file.with_suffix(".new"))  # the tensors are still mapped from the file
    file.with_suffix(".new").rename(file)


def test_param_shapes_of_old_versions(tmp_path):
    """One dict for all groups, in the file of optimizer states: DeepSpeed before 0.5.4 and 0.6."""
    held = {name: tensor for name, tensor in state().items() if name != HEAD}
    tag = write_zero(tmp_path / "out", held, 2, 2, {}) / "250000"
    edit(tag / "mp_rank_00_model_states.pt", lambda content: content.pop("param_shapes"))
    merged = collections.OrderedDict((name, t.shape) for group in groups_of(held) for name, t in group.items())
    edit(tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt", lambda content: content.update(param_shapes=merged))
    assert_holds(tag, held)


@pytest.mark.parametrize("stage", [2, 3])
def test_frozen_parameters_and_buffers(tmp_path, stage):
    held = {name: tensor for name, tensor in state().items() if name != HEAD}
    frozen = {name: held.pop(name) for name in (WORD, "encoder.layer_norm.gamma")}
    tag = write_zero(tmp_path / "out", held, stage, 2, {}) / "250000"
    for rank, file in enumerate(sorted(tag.glob("*model_states.pt"))):
        whole = stage == 2
        parts = {name: t if whole else part_3([{name: t}], rank, 2) for name, t in frozen.items()}

        def add(content, parts=parts):
            content["frozen_param_shapes"] = {name: tensor.shape for name, tensor in frozen.items()}
            content["frozen_param_fragments"] = parts
            content["buffer_names"] = ["a.buffer"]
            content["module"]["a.buffer"] = torch.arange(3.0)

        edit(file, add)
    assert_holds(tag, {**held, **frozen, "a.buffer": torch.arange(3.0)})


def test_the_module_of_a_file_by_itself_is_float16(tmp_path):
    held = state()
    tag = write_zero(tmp_path / "out", held, 2, 2, {HEAD: WORD}) / "250000"
    source = open_source(tag / "mp_rank_00_model_states.pt")
    assert "in float32 are in the files beside it" in source.notes[0]
    assert torch.equal(torch.from_numpy(source.read(WORD)), held[WORD].half())


def test_without_the_optimizer_files_the_module_is_read_and_said(tmp_path):
    folder = write_zero(tmp_path / "out", state(), 2, 2, {HEAD: WORD})
    for file in (folder / "250000").glob("*optim_states.pt"):
        file.unlink()
    weights = open_weights(folder)
    assert "in float16; those in float32 are in the *_optim_states.pt" in weights.notes[0]
    folder = write_zero(tmp_path / "3", state(), 3, 2, {HEAD: WORD})
    for file in (folder / "250000").glob("*optim_states.pt"):
        file.unlink()
    with pytest.raises(UserError, match="optim_states.pt, which hold the weights, are missing"):
        open_weights(folder)


AXES = {"linear_layers": 0, "linear_1": 0, "word": 0, "output_layer": 0, "final_linear.weight": 1, "linear_2.weight": 1}


def shard(held, rank, ranks):
    """What a tensor-parallel rank holds."""
    part = {}
    for name, tensor in held.items():
        axis = next((axis for pattern, axis in AXES.items() if pattern in name), None)
        part[name] = tensor.clone() if axis is None else tensor.chunk(ranks, axis)[rank].clone()
    return part


def write_tensor_parallel(folder, held, ranks):
    folder.mkdir()
    for rank in range(ranks):
        module = shard(held, rank, ranks)
        save(folder / f"mp_rank_{rank:02}_model_states.pt", {"module": module, "mp_world_size": ranks})
    return folder


def test_tensor_parallel_ranks(tmp_path):
    held = state(vocabulary=V + 1)
    folder = write_tensor_parallel(tmp_path / "out", held, 2)
    assert_holds(folder, held)
    with pytest.raises(UserError, match="is one of 2 tensor-parallel ranks. Name its folder"):
        open_source(folder / "mp_rank_01_model_states.pt")
    (folder / "mp_rank_01_model_states.pt").unlink()
    with pytest.raises(UserError, match="2 tensor-parallel ranks.*of rank 1 is missing"):
        open_source(folder)


def test_tensor_parallel_ranks_with_zero(tmp_path):
    held = {name: tensor for name, tensor in state(vocabulary=V + 1).items() if name != HEAD}
    for rank in range(2):
        write_zero(tmp_path / "out", shard(held, rank, 2), 2, 2, {}, rank, 2)
    assert_holds(tmp_path / "out", held)


def remove(name):
    return lambda folder: (folder / "250000" / name).unlink()


def too_many(folder):
    tag = folder / "250000"
    shutil.copy(tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt", tag / "zero_pp_rank_4_mp_rank_00_optim_states.pt")


def from_another_run(folder):
    file = folder / "250000" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    key = "single_partition_of_fp32_groups"
    edit(file, lambda content: content["optimizer_state_dict"].update({key: [torch.ones(9), torch.ones(2)]}))


def of_other_groups(folder):
    file = folder / "250000" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    key = "single_partition_of_fp32_groups"
    edit(file, lambda content: content["optimizer_state_dict"].update({key: [torch.ones(9)]}))


def cut_short(folder):
    file = folder / "250000" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            remove("zero_pp_rank_2_mp_rank_00_optim_states.pt"),
            "of 4 ranks, and .*_optim_states.pt of rank 2 is missing",
        ),
        (remove("mp_rank_00_model_states.pt"), "_model_states.pt are missing"),
        (too_many, "of 4 ranks, and there are 5"),
        (from_another_run, "do not belong together, or are damaged"),
        (of_other_groups, "other numbers of parameter groups"),
        (cut_short, "It is damaged or cut short"),
        (lambda folder: (folder / "latest").write_text("300000"), "names '300000', which is not there. Found 250000"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path, damage, says):
    folder = write_zero(tmp_path / "out", state(), 2, 4, {HEAD: WORD})
    damage(folder)
    with pytest.raises(UserError, match=says):
        open_source(folder if (folder / "latest").read_text() == "300000" else folder / "250000")


def test_without_latest_the_checkpoint_must_be_the_only_one(tmp_path):
    folder = write_zero(tmp_path / "out", state(), 3, 2, {HEAD: WORD})
    (folder / "latest").unlink()
    assert_holds(folder, state())
    shutil.copytree(folder / "250000", folder / "300000")
    with pytest.raises(UserError, match="several checkpoints and no file latest. Name one of them: 250000, 300000"):
        open_source(folder)


class Malicious:
    """Pickled as a call of a function that writes a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return exec, (f"open({str(self.file)!r}, 'w').write('run')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path, zipped):
    written = tmp_path / "written"
    content = {"module": state(), "scheduler": Malicious(written), "rng": getattr}
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    loaded = load_without_code(file)
    assert isinstance(loaded["scheduler"], Inert) and loaded["scheduler"].of == "__builtin__.exec"
    assert issubclass(loaded["rng"], Inert)
    assert_holds(file, state())
    assert not written.exists()
    with open(file, "wb") as output:
        pickle.dump(Malicious(written), output, protocol=2)
    with pytest.raises(UserError, match="where DeepSpeed writes a dict|damaged or cut short"):
        open_source(file)
    assert not written.exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_program_of_torchscript_is_not_loaded(tmp_path):
    """`torch.load` would hand it to the interpreter of TorchScript, past the restricted unpickler."""
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    for path in (file, tmp_path):
        with pytest.raises(UserError, match="is a program of TorchScript"):
            open_source(path)
