// SPDX-License-Identifier: Apache-2.0
// Every op schema of the package, and nothing else. Kernel ops begin with an underscore and know nothing of gradients;
// public ops are thin, differentiable, and implemented in edgeops/<subsystem>/ on top of the kernel ops.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(edgeops, m) {
  // ragged
  m.def(
      "ragged_attention(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, SymInt max_q, SymInt max_k, *, "
      "float? scale=None, bool causal=False, SymInt[2] window=[-1, -1], Tensor? bias=None, float dropout_p=0.0, "
      "Tensor? seed=None) -> Tensor");
  m.def(
      "ragged_attention_lse(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, SymInt max_q, SymInt max_k, *, "
      "float? scale=None, bool causal=False, SymInt[2] window=[-1, -1], Tensor? bias=None, float dropout_p=0.0, "
      "Tensor? seed=None) -> (Tensor, Tensor)");
  m.def(
      "_ragged_attention_fwd(Tensor q, Tensor k, Tensor v, Tensor cu_q, Tensor cu_k, Tensor? bias, float scale, "
      "bool causal, int window_left, int window_right, float dropout_p=0.0, Tensor? seed=None) "
      "-> (Tensor out, Tensor lse)");
  m.def(
      "_ragged_attention_bwd(Tensor grad_out, Tensor? grad_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
      "Tensor cu_q, Tensor cu_k, Tensor? bias, float scale, bool causal, int window_left, int window_right, "
      "float dropout_p=0.0, Tensor? seed=None) -> (Tensor dq, Tensor dk, Tensor dv, Tensor dbias)");

  m.def("ragged_pack(Tensor padded, Tensor offsets, SymInt total) -> Tensor");
  m.def("ragged_unpack(Tensor values, Tensor offsets, SymInt length, float padding_value=0.0) -> Tensor");
  m.def("_ragged_pack(Tensor padded, Tensor offsets, SymInt total) -> Tensor");
  m.def("_ragged_unpack(Tensor values, Tensor offsets, SymInt length, float padding_value) -> Tensor");

  m.def("ragged_pool(Tensor x, Tensor offsets, str reduction=\"mean\") -> Tensor");
  m.def("_ragged_pool_fwd(Tensor x, Tensor offsets, int mode) -> Tensor");
  m.def("_ragged_pool_bwd(Tensor grad_out, Tensor x, Tensor out, Tensor offsets, int mode) -> Tensor");

  m.def("bias_gelu(Tensor x, Tensor bias, str approximate=\"none\") -> Tensor");
  m.def("_bias_gelu_fwd(Tensor x, Tensor bias, bool tanh) -> Tensor");
  m.def("_bias_gelu_bwd(Tensor grad_out, Tensor x, Tensor bias, bool tanh) -> (Tensor dx, Tensor dbias)");

  m.def(
      "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps=1e-05, Tensor? x_bias=None) "
      "-> Tensor");
  m.def(
      "_add_layer_norm_fwd(Tensor x, Tensor? x_bias, Tensor residual, Tensor weight, Tensor bias, float eps) "
      "-> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "_add_layer_norm_bwd(Tensor grad_out, Tensor x, Tensor? x_bias, Tensor residual, Tensor mean, Tensor rstd, "
      "Tensor weight) -> (Tensor dsum, Tensor dweight, Tensor dbias, Tensor dx_bias)");

  m.def("vgemm(Tensor[] a, Tensor[] b) -> Tensor[]");
  m.def("_vgemm(Tensor[] a, Tensor[] b, bool trans_a, bool trans_b) -> Tensor[]");
  m.def("vgemm_packed(Tensor a, Tensor b, Tensor sizes, SymInt? total=None) -> Tensor");
  m.def("_vgemm_packed(Tensor a, Tensor b, Tensor sizes, bool trans_a, bool trans_b, SymInt total) -> Tensor");
  m.def("grouped_mm(Tensor x, Tensor w, *, Tensor? offs=None, Tensor? bias=None) -> Tensor");
  m.def("_grouped_mm(Tensor x, Tensor w, Tensor? offs) -> Tensor");

  m.def("trmm(Tensor l, Tensor b, *, bool upper=False, float alpha=1.0) -> Tensor");
  m.def("_trmm_fwd(Tensor l, Tensor b, bool upper, bool transpose, float alpha) -> Tensor");
  m.def("_trmm_bwd_l(Tensor grad_out, Tensor b, bool upper, float alpha) -> Tensor");
  m.def("tradd(Tensor l1, Tensor l2, *, bool upper=False) -> Tensor");
  m.def("trmul(Tensor l1, Tensor l2, *, bool upper=False) -> Tensor");
  m.def("_tri_binary(Tensor l1, Tensor l2, bool multiply, bool upper) -> Tensor");

  m.def("ragged_softmax(Tensor x, Tensor offsets, *, bool log=False) -> Tensor");
  m.def("_ragged_softmax_fwd(Tensor x, Tensor offsets, bool log) -> Tensor");
  m.def("_ragged_softmax_bwd(Tensor grad_out, Tensor out, Tensor offsets, bool log) -> Tensor");

  m.def(
      "ragged_conv1d(Tensor x, Tensor offsets, Tensor weight, Tensor? bias=None, *, SymInt pad_left=0, "
      "SymInt pad_right=0, SymInt dilation=1, SymInt groups=1) -> Tensor");
  m.def(
      "_ragged_conv1d_fwd(Tensor x, Tensor offsets, Tensor weight, Tensor? bias, SymInt pad_left, SymInt pad_right, "
      "SymInt dilation, SymInt groups) -> Tensor");
  m.def(
      "_ragged_conv1d_bwd_weight(Tensor grad_out, Tensor x, Tensor offsets, SymInt taps, SymInt pad_left, "
      "SymInt pad_right, SymInt dilation, SymInt groups) -> Tensor");

  m.def(
      "ragged_instance_norm(Tensor x, Tensor offsets, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) "
      "-> Tensor");
  m.def(
      "_ragged_instance_norm_fwd(Tensor x, Tensor offsets, Tensor? weight, Tensor? bias, float eps) "
      "-> (Tensor out, Tensor mean, Tensor rstd)");
  m.def(
      "_ragged_instance_norm_bwd(Tensor grad_out, Tensor x, Tensor offsets, Tensor mean, Tensor rstd, Tensor? weight) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias)");

  // batching: internal ops that write into segments of tables and return nothing
  m.def("_rows_linear(Tensor[] tables, Tensor[] rows, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
  m.def("_rows_linear_pack(Tensor[] weights) -> Tensor");
  m.def("_rows_linear_wgrad(Tensor grad, Tensor[] tables, Tensor[] rows, Tensor(a!) dweight, Tensor(b!)? dbias) -> ()");
  m.def(
      "_batches_run(Tensor code, Tensor classes, Tensor records, Tensor offsets, Tensor rows, Tensor numbers, "
      "Tensor starts, Tensor makers, Tensor(a!) reached, Tensor(b!)[] tensors, int section, int begin, int end, "
      "int first_batch) -> ()");
  m.def("_rows_add(Tensor src, Tensor rows, Tensor(a!) out) -> ()");
  m.def("_rows_sum(Tensor src, Tensor starts, Tensor index, Tensor(a!) out, bool add=False) -> ()");
  m.def("_lstm_cell_fwd(Tensor(a!) gates, Tensor c, Tensor c_rows, Tensor(b!) h_out, Tensor(c!) c_out) -> ()");
  m.def(
      "_lstm_cell_bwd(Tensor gates, Tensor c, Tensor c_rows, Tensor c_out, Tensor dh, Tensor dc, Tensor(a!) dgates, "
      "Tensor(b!) dc_in) -> ()");
  m.def(
      "_treelstm_cell_fwd(Tensor(a!) gates, Tensor c1, Tensor rows1, Tensor c2, Tensor rows2, Tensor(b!) h_out, "
      "Tensor(c!) c_out) -> ()");
  m.def(
      "_treelstm_cell_bwd(Tensor gates, Tensor c1, Tensor rows1, Tensor c2, Tensor rows2, Tensor c_out, Tensor dh, "
      "Tensor dc, Tensor(a!) dgates, Tensor(b!) dc1, Tensor(c!) dc2) -> ()");
  m.def("_treelstm_leaf_fwd(Tensor(a!) gates, Tensor(b!) h_out, Tensor(c!) c_out) -> ()");
  m.def("_treelstm_leaf_bwd(Tensor gates, Tensor c_out, Tensor dh, Tensor dc, Tensor(a!) dgates) -> ()");
  m.def("_gru_cell_fwd(Tensor(a!) x_gates, Tensor h_gates, Tensor h, Tensor h_rows, Tensor(b!) h_out) -> ()");
  m.def(
      "_gru_cell_bwd(Tensor x_gates, Tensor h_gates, Tensor h, Tensor h_rows, Tensor dh, Tensor(a!) dx_gates, "
      "Tensor(b!) dh_gates, Tensor(c!) dh_in) -> ()");
  m.def(
      "_treegru_reset_fwd(Tensor(a!) gates, Tensor h1, Tensor rows1, Tensor h2, Tensor rows2, Tensor(b!) reset) -> ()");
  m.def(
      "_treegru_reset_bwd(Tensor gates, Tensor h1, Tensor rows1, Tensor h2, Tensor rows2, Tensor dreset, "
      "Tensor(a!) dgates, Tensor(b!) dh1, Tensor(c!) dh2) -> ()");
  m.def(
      "_treegru_cell_fwd(Tensor(a!) cand, Tensor gates, Tensor h1, Tensor rows1, Tensor h2, Tensor rows2, "
      "Tensor(b!) h_out) -> ()");
  m.def(
      "_treegru_cell_bwd(Tensor cand, Tensor gates, Tensor h1, Tensor rows1, Tensor h2, Tensor rows2, Tensor dh, "
      "Tensor(a!) dcand, Tensor(b!) dgates, Tensor(c!) dh1, Tensor(d!) dh2) -> ()");

  // offload
  m.def("subspace_project(Tensor x, Tensor index, Tensor value, Tensor starts, Tensor order) -> Tensor");
  m.def("_subspace_project(Tensor x, Tensor index, Tensor value, Tensor starts, Tensor order) -> Tensor");
  m.def("subspace_expand(Tensor y, Tensor index, Tensor value, Tensor starts, Tensor order) -> Tensor");
  m.def("_subspace_expand(Tensor y, Tensor index, Tensor value) -> Tensor");
  m.def("_subspace_value_grad(Tensor x, Tensor y, Tensor index) -> Tensor");
  m.def(
      "_subspace_apply(Tensor(a!) weight, Tensor delta, Tensor p_index, Tensor p_value, Tensor q_index, "
      "Tensor q_value, float alpha, float keep=1.0, bool stochastic=False, int seed=0) -> ()");
  m.def(
      "_subspace_adam(Tensor(a!) grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, int step, float beta1, float beta2, "
      "float eps) -> ()");

  // drift
  m.def(
      "_strsaga_run(Tensor x, Tensor y, Tensor order, Tensor starts, Tensor(a!) w, Tensor(b!) sum, Tensor(c!) alpha, "
      "Tensor(d!) window, float eta, float mu) -> ()");
}
