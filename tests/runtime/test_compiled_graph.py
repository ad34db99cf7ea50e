"""Reading the text of MindSpore's graphs: operations are counted through calls, and by purpose."""

import pytest

from mindgpt.runtime.compiled_graph import Collective, CompiledGraph

# As MindSpore 2.10 writes it, shortened: two calls of one block forward and backward, and a condition.
TEXT = """\
# IR entry: @9_TrainStep_construct_1
# Total subgraphs: 5

%para1_batch0: <Tensor[Int32], (8, 33)> : [8, 33]
%para2_w: <Ref[Tensor[Float32]], (32, 64), ref_key=w, is_parameter, is_inplace>  :  has_default
%para3_scale: <Ref[Tensor[Float32]], (), ref_key=scale, is_parameter, is_inplace>  :  has_default

subgraph attr:
subgraph instance: 1_▸Block_construct_2 : 0x1
subgraph @1_▸Block_construct_2(%para4_x, %para5_w) {
  %0(y) = PrimFunc_MatMul(%para4_x, %para5_w, Bool(0), Bool(1)) {instance name: matmul} primitive_attrs: {a: 1}
      : (<Tensor[Float16], (128, 64)>, <Tensor[Float16], (32, 64)>, <Bool, NoShape>) -> (<Tensor[Float16], (128, 32)>)
      # Scope: (Default/AllReduce)
  %1(equiv_65_z) = AllReduce(%0) {instance name: forward_op_12} primitive_attrs: {group: "2-5", rank_list: (0, 1)}
      : (<Tensor[Float16], (128, 32)>) -> (<Tensor[Float16], (128, 32)>)
  %3(p) = Load(%para5_w, %para9_u) cnode_primal_attrs: {unique_id: "1"}
      : (<Ref[Tensor[Float16]], (50)>, <UMonad, NoShape>) -> (<Tensor[Float16], (50)>)
  %2(C) = Partial(@2_◂Block_construct_3, %para5_w, %1, %0, %3, %para6_b.w, F32(1)) primitive_attrs: {p: 1}
      : (<Func>, <Ref[Tensor[Float32]], (9)>, <Tensor[Float16], (4, 3)>, <Tensor[Float32], (7)>, \
<Tensor[Float16], (50)>, <Tensor[Float16], (5)>, <Float32>) -> ()
}

subgraph @2_◂Block_construct_3(%para6_dy) {
  %0(dx) = PrimFunc_BatchMatMul(%para6_dy, %para6_dy, Bool(1), Bool(0)) {instance name: g}
      : (<Tensor[Float16], (2, 8, 5)>, <Tensor[Float16], (2, 8, 6)>, <Bool, NoShape>) -> (<Tensor[Float16], (2, 5, 6)>)
  %1(dx) = ReduceScatter(%0) {instance name: grad_parallel_optimizer_allgather} primitive_attrs: {rank_list: (0, 2)}
      : (<Tensor[Float32], (64)>) -> (<Tensor[Float32], (32)>)
  %3(dx) = AllReduce(%0) {instance name: all_reduce} cnode_primal_attrs: {forward_node_name: "AllReduce_4"}
      : (<Tensor[Float32], (9)>) -> (<Tensor[Float32], (9)>)
  %2(dx) = AllReduce(%1) {instance name: grad_mirror_MirrorOperator} primitive_attrs: {group: "hccl_world_group"}
      : (<Tensor[Float32], (32)>) -> (<Tensor[Float32], (32)>)
}

subgraph @3_✓Update_construct_4() {
  %0(g) = AllGather(%x) {instance name: parallel_optimizer_allgather} primitive_attrs: {group_rank_ids: (0, 2)}
      : (<Tensor[BFloat16], (4)>) -> (<Tensor[BFloat16], (8)>)
}

subgraph @4_✗Update_construct_5() {
}

subgraph @9_TrainStep_construct_1() {
  %0(▲CNode_1) = call @1_▸Block_construct_2(%para1_batch0, %para2_w)
      : (<Tensor[Float16], (128, 64)>) -> (<Tuple[Tensor[Float16],Func], TupleShape((128, 32), NoShape)>)
  %1(▲CNode_2) = call @1_▸Block_construct_2(%0, %para2_w)
      : (<Tensor[Float16], (128, 64)>) -> (<Tuple[Tensor[Float16],Func], TupleShape((128, 32), NoShape)>)
  %2(CNode_3) = %1[@Partial(@2_◂Block_construct_3)](%1)
      : (<Tensor[Float16], (128, 64)>) -> (<Tensor[Float16], (128, 32)>)
  %3(CNode_4) = Parameter_544[@@2_◂Block_construct_3](%2)
      : (<Tensor[Float16], (128, 64)>) -> (<Tensor[Float16], (128, 32)>)
  %4(s) = Send(%3) {instance name: Send} primitive_attrs: {dst_global_rank: I64(4), group_rank_ids: (0, 4, 8)}
      : (<Tensor[Float16], (64, 64)>) -> (<Tensor[Float16], (64, 64)>)
  %5(n) = AllReduce(%4) {instance name: all_reduce} primitive_attrs: {group: "hccl_world_group"}
      : (<Tensor[Float32], ()>) -> (<Tensor[Float32], ()>)
  %6(c) = Switch(%5, %3, %4)
      : (<Tensor[Bool], ()>) -> (<Func, NoShape>)
  %7(r) = %6[@FuncUnion(Partial(@4_✗Update_construct_5), Partial(@3_✓Update_construct_4))]()
      : () -> (<Tensor[Float32], ()>)
}
"""


@pytest.fixture
def graph(tmp_path):
    file = tmp_path / "21_validate_0001.ir"
    file.write_text(TEXT, encoding="utf-8")
    return CompiledGraph(file)


def test_collectives_are_counted_through_calls(graph):
    assert graph.collectives() == {
        Collective("AllReduce", "activations", (0, 1), 128 * 32 * 2): 2,
        Collective("ReduceScatter", "gradients", (0, 2), 64 * 4): 2,
        Collective("AllReduce", "gradients", (), 32 * 4): 2,
        Collective("AllReduce", "activations", (), 9 * 4): 2,
        Collective("AllGather", "weights", (0, 2), 8 * 2): 1,
        Collective("Send", "stages", (4,), 64 * 64 * 2): 1,
        Collective("AllReduce", "other", (), 4): 1,
    }
    assert graph.collectives("▸Block") == {Collective("AllReduce", "activations", (0, 1), 128 * 32 * 2): 2}


def test_matrix_products_count_two_operations_per_multiply_add(graph):
    assert graph.product_flops == 2 * (2 * 128 * 32 * 64) + 2 * (2 * 2 * 5 * 6 * 8)


def test_kept_bytes_exclude_weights(graph):
    assert graph.kept_bytes("Block_construct") == 4 * 3 * 2 + 7 * 4
    assert graph.kept_bytes("nothing") == 0


def test_parameters_are_this_ranks_shards(graph):
    assert {name: (tensor.dtype, tensor.shape, tensor.bytes) for name, tensor in graph.parameters.items()} == {
        "w": ("Float32", (32, 64), 32 * 64 * 4),
        "scale": ("Float32", (), 4),
    }


def test_a_file_that_is_not_a_graph_is_refused(tmp_path):
    file = tmp_path / "x.ir"
    file.write_text("nothing\n")
    with pytest.raises(ValueError, match="is not the text of a graph"):
        CompiledGraph(file)
