// SPDX-License-Identifier: Apache-2.0
// The pointwise parts of cells on the CPU: checks, one parallel region.
#include "cells.h"

#include <initializer_list>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../common/partition.h"
#include "checks.h"

namespace edgeops::batching {
namespace {

struct Band {
  int64_t begin, end;
  double cost;
};

// Bands of rows, of about 50 us each; `elements` are those of a row over all arguments.
template <class Body>
void run_rows(int64_t m, double nanoseconds, const Body& body) {
  const auto size = std::max<int64_t>(1, static_cast<int64_t>(50e3 / std::max(1.0, nanoseconds)));
  if (m <= size) {
    body(0, m);
    return;
  }
  std::vector<Band> bands;
  for (int64_t x = 0; x < m; x += size) {
    const int64_t end = std::min(m, x + size);
    bands.push_back({x, end, nanoseconds * static_cast<double>(end - x)});
  }
  run_by_cost(bands, [&](const Band& band) { body(band.begin, band.end); });
}

}  // namespace

void run_cell(Cell cell, Storage storage, const Place* places, int64_t m, int64_t h) {
  if (m == 0 || h == 0) {  // nothing may have no memory to point into
    return;
  }
  const CellRun kernel = cell_kernels(active_isa(), storage).run[static_cast<int>(cell)];
  const double each = storage == Storage::f64 ? 20 : 2;
  run_rows(m, each * static_cast<double>(h), [&](int64_t begin, int64_t end) { kernel(places, h, begin, end); });
}

void run_rows_sum(const RowsSum& call, int64_t m, Storage storage) {
  const RowsSumRun kernel = rows_sum_kernel(active_isa(), storage);
  const double each = m > 0 ? 1 + static_cast<double>(call.starts[m] - call.starts[0]) / static_cast<double>(m) : 0;
  run_rows(m, each * (5 + 0.15 * static_cast<double>(call.width)), [&](int64_t begin, int64_t end) {
    kernel(call, begin, end);
  });
}

void run_cross_entropy(const CrossEntropy& call, int64_t m, bool backward, Storage storage) {
  const CrossEntropyRun kernel = cross_entropy_kernel(active_isa(), storage, backward);
  const double each = storage == Storage::f64 ? 10 : 2;
  run_rows(
      m, 20 + each * static_cast<double>(call.classes), [&](int64_t begin, int64_t end) { kernel(call, begin, end); });
}

namespace {

// A cell call being put together: m rows of states `h` wide.
class Call {
 public:
  Call(const char* who, const Tensor& gates, const char* name, int64_t parts)
      : who_(who), storage_(require_storage(gates, who, name)), type_(gates.scalar_type()) {
    check_matrix(gates, type_, -1, -1, who, name);
    EDGEOPS_CHECK(
        gates.size(1) % parts == 0, ValueError, who,
        std::string(name) + " must have " + std::to_string(parts) + " parts of one width side by side", shape_of(gates),
        "Pass the products of all gates.");
    m_ = gates.size(0);
    h_ = gates.size(1) / parts;
    places_.reserve(12);
  }

  // Argument read row by row: [m, parts * h].
  Call& in(const Tensor& x, int64_t parts, const char* name) {
    check_matrix(x, type_, m_, parts * h_, who_, name);
    return place(x, nullptr, 0);
  }

  // The same, written.
  Call& out(const Tensor& x, int64_t parts, const char* name) {
    check_target(x, type_, m_, parts * h_, who_, name);
    return place(x, nullptr, 0);
  }

  // Rows of a table [any, h] by number.
  Call& rows(const Tensor& table, const Tensor& list, const char* name, const char* list_name) {
    check_matrix(table, type_, -1, h_, who_, name);
    return place(table, check_rows(list, table, m_, who_, list_name, keep_), 0);
  }

  // Both halves of [2 m, h]: two arguments.
  Call& halves(const Tensor& x, const char* name, bool written) {
    if (written) {
      check_target(x, type_, 2 * m_, h_, who_, name);
    } else {
      check_matrix(x, type_, 2 * m_, h_, who_, name);
    }
    return place(x, nullptr, 0).place(x, nullptr, m_);
  }

  void run(Cell cell) {
    run_cell(cell, storage_, places_.data(), m_, h_);
  }

 private:
  Call& place(const Tensor& x, const int32_t* rows, int64_t first) {
    places_.push_back({const_cast<void*>(x.const_data_ptr()), x.stride(0), rows, first});
    return *this;
  }

  const char* who_;
  Storage storage_;
  torch::headeronly::ScalarType type_;
  int64_t m_ = 0, h_ = 0;
  std::vector<Place> places_;
  std::vector<Tensor> keep_;
};

}  // namespace

void lstm_fwd_cpu(
    const Tensor& gates, const Tensor& c, const Tensor& c_rows, const Tensor& h_out, const Tensor& c_out) {
  Call("lstm_cell", gates, "gates", 4)
      .out(gates, 4, "gates")
      .rows(c, c_rows, "c", "c_rows")
      .out(h_out, 1, "h_out")
      .out(c_out, 1, "c_out")
      .run(Cell::lstm_fwd);
}

void lstm_bwd_cpu(
    const Tensor& gates, const Tensor& c, const Tensor& c_rows, const Tensor& c_out, const Tensor& dh, const Tensor& dc,
    const Tensor& dgates, const Tensor& dc_in) {
  Call("lstm_cell", gates, "gates", 4)
      .in(gates, 4, "gates")
      .rows(c, c_rows, "c", "c_rows")
      .in(c_out, 1, "c_out")
      .in(dh, 1, "dh")
      .in(dc, 1, "dc")
      .out(dgates, 4, "dgates")
      .out(dc_in, 1, "dc_in")
      .run(Cell::lstm_bwd);
}

void treelstm_fwd_cpu(
    const Tensor& gates, const Tensor& c1, const Tensor& rows1, const Tensor& c2, const Tensor& rows2,
    const Tensor& h_out, const Tensor& c_out) {
  Call("treelstm_cell", gates, "gates", 5)
      .out(gates, 5, "gates")
      .rows(c1, rows1, "c1", "rows1")
      .rows(c2, rows2, "c2", "rows2")
      .out(h_out, 1, "h_out")
      .out(c_out, 1, "c_out")
      .run(Cell::treelstm_fwd);
}

void treelstm_bwd_cpu(
    const Tensor& gates, const Tensor& c1, const Tensor& rows1, const Tensor& c2, const Tensor& rows2,
    const Tensor& c_out, const Tensor& dh, const Tensor& dc, const Tensor& dgates, const Tensor& dc1,
    const Tensor& dc2) {
  Call("treelstm_cell", gates, "gates", 5)
      .in(gates, 5, "gates")
      .rows(c1, rows1, "c1", "rows1")
      .rows(c2, rows2, "c2", "rows2")
      .in(c_out, 1, "c_out")
      .in(dh, 1, "dh")
      .in(dc, 1, "dc")
      .out(dgates, 5, "dgates")
      .out(dc1, 1, "dc1")
      .out(dc2, 1, "dc2")
      .run(Cell::treelstm_bwd);
}

void leaf_fwd_cpu(const Tensor& gates, const Tensor& h_out, const Tensor& c_out) {
  Call("treelstm_leaf", gates, "gates", 3)
      .out(gates, 3, "gates")
      .out(h_out, 1, "h_out")
      .out(c_out, 1, "c_out")
      .run(Cell::leaf_fwd);
}

void leaf_bwd_cpu(const Tensor& gates, const Tensor& c_out, const Tensor& dh, const Tensor& dc, const Tensor& dgates) {
  Call("treelstm_leaf", gates, "gates", 3)
      .in(gates, 3, "gates")
      .in(c_out, 1, "c_out")
      .in(dh, 1, "dh")
      .in(dc, 1, "dc")
      .out(dgates, 3, "dgates")
      .run(Cell::leaf_bwd);
}

void gru_fwd_cpu(
    const Tensor& x_gates, const Tensor& h_gates, const Tensor& h, const Tensor& h_rows, const Tensor& h_out) {
  Call("gru_cell", x_gates, "x_gates", 3)
      .out(x_gates, 3, "x_gates")
      .in(h_gates, 3, "h_gates")
      .rows(h, h_rows, "h", "h_rows")
      .out(h_out, 1, "h_out")
      .run(Cell::gru_fwd);
}

void gru_bwd_cpu(
    const Tensor& x_gates, const Tensor& h_gates, const Tensor& h, const Tensor& h_rows, const Tensor& dh,
    const Tensor& dx_gates, const Tensor& dh_gates, const Tensor& dh_in) {
  Call("gru_cell", x_gates, "x_gates", 3)
      .in(x_gates, 3, "x_gates")
      .in(h_gates, 3, "h_gates")
      .rows(h, h_rows, "h", "h_rows")
      .in(dh, 1, "dh")
      .out(dx_gates, 3, "dx_gates")
      .out(dh_gates, 3, "dh_gates")
      .out(dh_in, 1, "dh_in")
      .run(Cell::gru_bwd);
}

void reset_fwd_cpu(
    const Tensor& gates, const Tensor& h1, const Tensor& rows1, const Tensor& h2, const Tensor& rows2,
    const Tensor& reset) {
  Call("treegru_reset", gates, "gates", 4)
      .out(gates, 4, "gates")
      .rows(h1, rows1, "h1", "rows1")
      .rows(h2, rows2, "h2", "rows2")
      .halves(reset, "reset", true)
      .run(Cell::reset_fwd);
}

void reset_bwd_cpu(
    const Tensor& gates, const Tensor& h1, const Tensor& rows1, const Tensor& h2, const Tensor& rows2,
    const Tensor& dreset, const Tensor& dgates, const Tensor& dh1, const Tensor& dh2) {
  Call("treegru_reset", gates, "gates", 4)
      .in(gates, 4, "gates")
      .rows(h1, rows1, "h1", "rows1")
      .rows(h2, rows2, "h2", "rows2")
      .halves(dreset, "dreset", false)
      .out(dgates, 4, "dgates")
      .out(dh1, 1, "dh1")
      .out(dh2, 1, "dh2")
      .run(Cell::reset_bwd);
}

void treegru_fwd_cpu(
    const Tensor& cand, const Tensor& gates, const Tensor& h1, const Tensor& rows1, const Tensor& h2,
    const Tensor& rows2, const Tensor& h_out) {
  Call("treegru_cell", gates, "gates", 4)
      .halves(cand, "cand", true)
      .in(gates, 4, "gates")
      .rows(h1, rows1, "h1", "rows1")
      .rows(h2, rows2, "h2", "rows2")
      .out(h_out, 1, "h_out")
      .run(Cell::treegru_fwd);
}

void treegru_bwd_cpu(
    const Tensor& cand, const Tensor& gates, const Tensor& h1, const Tensor& rows1, const Tensor& h2,
    const Tensor& rows2, const Tensor& dh, const Tensor& dcand, const Tensor& dgates, const Tensor& dh1,
    const Tensor& dh2) {
  Call("treegru_cell", gates, "gates", 4)
      .halves(cand, "cand", false)
      .in(gates, 4, "gates")
      .rows(h1, rows1, "h1", "rows1")
      .rows(h2, rows2, "h2", "rows2")
      .in(dh, 1, "dh")
      .halves(dcand, "dcand", true)
      .out(dgates, 4, "dgates")
      .out(dh1, 1, "dh1")
      .out(dh2, 1, "dh2")
      .run(Cell::treegru_bwd);
}

void rows_sum_cpu(const Tensor& src, const Tensor& starts, const Tensor& index, const Tensor& out, bool add) {
  const char* who = "rows_sum";
  const Storage storage = require_storage(src, who, "src");
  check_matrix(src, src.scalar_type(), -1, -1, who, "src");
  check_target(out, src.scalar_type(), -1, src.size(1), who, "out");
  require_tensor(starts, who, "starts");
  require_tensor(index, who, "index");
  const int64_t m = out.size(0);
  EDGEOPS_CHECK(
      starts.scalar_type() == torch::headeronly::ScalarType::Long, TypeError, who, "starts must be int64",
      dtype_of(starts), "Cast it with .to(torch.int64).");
  EDGEOPS_CHECK(
      starts.dim() == 1 && starts.size(0) == m + 1 && starts.is_cpu(), ValueError, who,
      "starts must have shape (" + std::to_string(m + 1) + ",) on the CPU", shape_of(starts),
      "Pass where the list of each row of out begins, and the end of the last.");
  EDGEOPS_CHECK(
      index.scalar_type() == torch::headeronly::ScalarType::Int, TypeError, who, "index must be int32", dtype_of(index),
      "Cast it with .to(torch.int32).");
  EDGEOPS_CHECK(
      index.dim() == 1 && index.is_cpu(), ValueError, who, "index must have shape [number of summands] on the CPU",
      shape_of(index), "Pass the row numbers of all lists one after another.");
  const Tensor dense_starts = dense(starts), dense_index = dense(index);
  const auto* p = static_cast<const int64_t*>(dense_starts.const_data_ptr());
  for (int64_t i = 0, before = 0; i <= m; before = p[i++]) {
    EDGEOPS_CHECK(
        p[i] >= before && p[i] <= index.numel(), ValueError, who,
        "starts must never decrease, from 0 or more to at most " + std::to_string(index.numel()),
        std::to_string(p[i]) + " at position " + std::to_string(i), "Pass the running sum of the list lengths.");
  }
  const auto* rows = static_cast<const int32_t*>(dense_index.const_data_ptr());
  uint32_t largest = 0;  // negative numbers are large ones here
  for (int64_t j = p[0]; j < p[m]; ++j) {
    largest = static_cast<uint32_t>(rows[j]) > largest ? static_cast<uint32_t>(rows[j]) : largest;
  }
  if (p[m] > p[0] && static_cast<int64_t>(largest) >= src.size(0)) {
    int64_t at = p[0];
    while (rows[at] >= 0 && rows[at] < src.size(0)) {
      ++at;
    }
    fail(
        "ValueError", who, "index must hold row numbers from 0 to " + std::to_string(src.size(0) - 1),
        std::to_string(rows[at]) + " at position " + std::to_string(at), "Check which table the list belongs to.");
  }
  const RowsSum call{src.const_data_ptr(),   src.stride(0), src.size(1), p, rows, p[m],
                     out.mutable_data_ptr(), out.stride(0), add};
  run_rows_sum(call, m, storage);
}

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_lstm_cell_fwd", TORCH_BOX(&lstm_fwd_cpu));
  m.impl("_lstm_cell_bwd", TORCH_BOX(&lstm_bwd_cpu));
  m.impl("_treelstm_cell_fwd", TORCH_BOX(&treelstm_fwd_cpu));
  m.impl("_treelstm_cell_bwd", TORCH_BOX(&treelstm_bwd_cpu));
  m.impl("_treelstm_leaf_fwd", TORCH_BOX(&leaf_fwd_cpu));
  m.impl("_treelstm_leaf_bwd", TORCH_BOX(&leaf_bwd_cpu));
  m.impl("_gru_cell_fwd", TORCH_BOX(&gru_fwd_cpu));
  m.impl("_gru_cell_bwd", TORCH_BOX(&gru_bwd_cpu));
  m.impl("_treegru_reset_fwd", TORCH_BOX(&reset_fwd_cpu));
  m.impl("_treegru_reset_bwd", TORCH_BOX(&reset_bwd_cpu));
  m.impl("_treegru_cell_fwd", TORCH_BOX(&treegru_fwd_cpu));
  m.impl("_treegru_cell_bwd", TORCH_BOX(&treegru_bwd_cpu));
  m.impl("_rows_sum", TORCH_BOX(&rows_sum_cpu));
}

}  // namespace edgeops::batching
