// SPDX-License-Identifier: Apache-2.0
// _batches_run on the CPU: runs the programs of consecutive batches.
#include "program.h"

#include <cstring>
#include <string>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cells.h"
#include "checks.h"
#include "linear.h"

namespace edgeops::batching {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kWho = "batches_run";

// Arguments of every cell kernel, as parts of a state's width each; zeros behind the last.
constexpr int8_t kParts[static_cast<int>(Cell::count)][12] = {
    {4, 1, 1, 1},                       // lstm_fwd
    {4, 1, 1, 1, 1, 4, 1},              // lstm_bwd
    {5, 1, 1, 1, 1},                    // treelstm_fwd
    {5, 1, 1, 1, 1, 1, 5, 1, 1},        // treelstm_bwd
    {3, 1, 1},                          // leaf_fwd
    {3, 1, 1, 1, 3},                    // leaf_bwd
    {3, 3, 1, 1},                       // gru_fwd
    {3, 3, 1, 1, 3, 3, 1},              // gru_bwd
    {4, 1, 1, 1, 1},                    // reset_fwd
    {4, 1, 1, 1, 1, 4, 1, 1},           // reset_bwd
    {1, 1, 4, 1, 1, 1},                 // treegru_fwd
    {1, 1, 4, 1, 1, 1, 1, 1, 4, 1, 1},  // treegru_bwd
};

[[noreturn]] void broken(const std::string& what) {
  fail("RuntimeError", kWho, "programs must fit their batches and tensors", what, "Report it: a cell's program is wrong.");
}

void expect(bool good, const char* what) {
  if (!good) {
    broken(what);
  }
}

// A tensor as the steps see it; matrices have dense rows.
struct Table {
  char* data;
  int64_t dims, rows, cols, depth, stride, bytes;
  ScalarType type;
};

Table table_of(const Tensor& x) {
  Table t{static_cast<char*>(const_cast<void*>(x.const_data_ptr())), x.dim(), 1, 1, 1, 0, x.element_size(),
          x.scalar_type()};
  expect(x.is_cpu(), "a tensor that is not on the CPU");
  if (t.dims == 3) {
    t.depth = x.size(2);
    t.rows = x.size(0);
    t.cols = x.size(1);
    expect(x.is_contiguous(), "a packed weight that is not dense");
  } else if (t.dims == 2) {
    t.rows = x.size(0);
    t.cols = x.size(1);
    t.stride = x.stride(0);
    expect(t.cols <= 1 || t.rows == 0 || x.stride(1) == 1, "a table without dense rows");
  } else if (t.dims == 1) {
    t.cols = x.size(0);
    expect(t.cols <= 1 || x.stride(0) == 1, "a vector that is not dense");
  } else {
    broken("a tensor of other than 1 to 3 dimensions");
  }
  return t;
}

template <class T>
struct Array {
  const T* data;
  int64_t size;
  T at(int64_t i) const {
    expect(i >= 0 && i < size, "a position outside an array");
    return data[i];
  }
  const T* range(int64_t i, int64_t count) const {
    expect(i >= 0 && count >= 0 && i + count <= size, "a range outside an array");
    return data + i;
  }
};

template <class T>
Array<T> array_of(const Tensor& x, ScalarType type, const char* name) {
  require_tensor(x, kWho, name);
  EDGEOPS_CHECK(
      x.scalar_type() == type && x.dim() == 1 && x.is_cpu() && x.is_contiguous(), ValueError, kWho,
      std::string(name) + " must be a dense vector of " + torch::headeronly::toString(type) + " on the CPU",
      dtype_of(x) + " of shape " + shape_of(x), "Pass what the recording's place() gave.");
  return {static_cast<const T*>(x.const_data_ptr()), x.numel()};
}

// One row a call: rows of a table by number, or one after the other where there are no numbers.
struct View {
  char* data;  // the first of the columns; of the first row where there are no numbers
  int64_t stride;
  const int32_t* rows;
  int64_t width, count;
  ScalarType type;
};

template <class T, class S = T>
void add_rows(const View& to, const View& from) {
  for (int64_t i = 0; i < from.count; ++i) {
    const int64_t source = from.rows == nullptr ? i : from.rows[i], target = to.rows == nullptr ? i : to.rows[i];
    const S* x = reinterpret_cast<const S*>(from.data) + source * from.stride;
    T* y = reinterpret_cast<T*>(to.data) + target * to.stride;
    for (int64_t k = 0; k < from.width; ++k) {
      y[k] = static_cast<T>(y[k] + x[k]);
    }
  }
}

class Runner {
 public:
  Array<int64_t> code, classes, records, offsets;
  Array<int32_t> rows, makers;
  Array<int64_t> numbers, starts;
  uint8_t* reached = nullptr;
  int64_t reached_size = 0, first_batch = 0;
  std::vector<Table> tables;

  void forward(int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      take(b);
      run(Section::forward);
    }
  }

  // Backwards through the batches that a gradient has reached, marked 1 before and 2 after.
  void backward(int64_t begin, int64_t end) {
    for (int64_t b = end; b-- > begin;) {
      take(b);
      expect(first_batch + b < reached_size, "fewer marks than batches");
      uint8_t& mark = reached[first_batch + b];
      if (mark != 1) {
        clear(true);
        continue;
      }
      mark = 2;
      for (int64_t s = 0; s < slots_; ++s) {
        const int64_t* operand = operand_of(batch_[0], s);
        for (int64_t i = operand[6]; i < operand[7]; ++i) {
          const int64_t maker = makers.at(i);
          expect(maker >= 0 && maker < first_batch + b, "a batch that reads a later one");
          reached[maker] = 1;
        }
      }
      run(Section::backward);
      clear(false);
    }
  }

  // What is left for the end, once a type over all its calls.
  void finish(int64_t begin, int64_t end) {
    const int64_t types = code.at(0);
    std::vector<std::vector<const int64_t*>> of_type(types);
    for (int64_t b = begin; b < end; ++b) {
      take(b);
      of_type[type_].push_back(batch_[0]);
    }
    for (int64_t t = 0; t < types; ++t) {
      if (of_type[t].empty() || code.at(kHead + kTypeHead * t + 3) < 0) {
        continue;
      }
      type_ = t;
      batch_ = of_type[t];
      m_ = 0;
      base_ = batch_[0][3];
      expect(base_ == 0, "a type whose first batch is missing");
      for (const int64_t* record : batch_) {
        m_ += record[2];
      }
      slots_ = batch_[0][4];
      outs_ = batch_[0][5];
      first_tensor_ = code.at(kHead + kTypeHead * t);
      run(Section::finish);
    }
  }

 private:
  std::vector<const int64_t*> batch_;  // records: one, or all of a type
  int64_t type_ = 0, m_ = 0, base_ = 0, slots_ = 0, outs_ = 0, first_tensor_ = 0;
  std::vector<std::vector<int32_t>> lists_;  // row numbers made for the running batch
  ScalarType compute_ = ScalarType::Float;

  static const int64_t* operand_of(const int64_t* record, int64_t slot) {
    return record + 6 + 8 * slot;
  }
  static const int64_t* result_of(const int64_t* record, int64_t which) {
    return record + 6 + 8 * record[4] + 2 * which;
  }

  void take(int64_t b) {
    const int64_t at = offsets.at(b), length = records.at(at);
    const int64_t* r = records.range(at, length);
    expect(length >= 6 && r[4] >= 0 && r[5] >= 0 && length == 6 + 8 * r[4] + 2 * r[5], "a record of another length");
    batch_.assign(1, r);
    type_ = r[1];
    expect(type_ >= 0 && type_ < code.at(0), "a type without a program");
    m_ = r[2];
    base_ = code.at(1) != 0 ? r[3] : 0;
    slots_ = r[4];
    outs_ = r[5];
    first_tensor_ = code.at(kHead + kTypeHead * type_);
  }

  const Table& tensor(int64_t local) const {
    const int64_t at = first_tensor_ + local;
    expect(local >= 0 && at < static_cast<int64_t>(tables.size()), "a tensor that is not there");
    return tables[at];
  }

  // Tensor of a class, or nullptr.
  const Table* of_class(int64_t number, int64_t which) const {
    const int64_t at = classes.at(kClass * number + which);
    expect(at < static_cast<int64_t>(tables.size()), "a table that is not there");
    return at < 0 ? nullptr : &tables[at];
  }

  View view(const Table& t, int64_t first, const int32_t* list, int64_t count, int64_t col, int64_t width) const {
    expect(t.dims == 2, "a place that is not a matrix");
    const int64_t columns = width < 0 ? t.cols - col : width;
    expect(col >= 0 && columns >= 0 && col + columns <= t.cols, "columns outside of a tensor");
    if (list == nullptr) {
      expect(first >= 0 && first + count <= t.rows, "rows outside of a tensor");
      return {t.data + (first * t.stride + col) * t.bytes, t.stride, nullptr, columns, count, t.type};
    }
    uint32_t largest = 0;  // negative numbers are large ones here
    for (int64_t i = 0; i < count; ++i) {
      largest = static_cast<uint32_t>(list[i]) > largest ? static_cast<uint32_t>(list[i]) : largest;
    }
    expect(count == 0 || static_cast<int64_t>(largest) < t.rows, "a row number outside of a tensor");
    return {t.data + col * t.bytes, t.stride, list, columns, count, t.type};
  }

  // Rows of operand `slot` in all records of the running batch: as a first row, or as a list.
  std::pair<int64_t, const int32_t*> rows_of(int64_t slot) {
    const int64_t* o = operand_of(batch_[0], slot);
    int64_t next = o[4];
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      next = next >= 0 && x[4] == next ? next + x[3] : -1;
    }
    if (next >= 0) {
      return {o[4], nullptr};
    }
    if (batch_.size() == 1) {
      return {-1, rows.range(o[2], o[3])};
    }
    lists_.emplace_back();
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      if (x[4] >= 0) {
        for (int64_t i = 0; i < x[3]; ++i) {
          lists_.back().push_back(static_cast<int32_t>(x[4] + i));
        }
      } else {
        const int32_t* list = rows.range(x[2], x[3]);
        lists_.back().insert(lists_.back().end(), list, list + x[3]);
      }
    }
    return {-1, lists_.back().data()};
  }

  View named(const Table& t, int64_t slot, int64_t col, int64_t width) {
    lists_.emplace_back();
    for (const int64_t* record : batch_) {
      const int64_t* x = operand_of(record, slot);
      expect(x[0] == 2, "names that are not integers");
      const int64_t* given = numbers.range(x[2], x[3]);
      for (int64_t i = 0; i < x[3]; ++i) {
        if (given[i] < 0 || given[i] >= t.rows) {
          fail(
              "ValueError", ("batching cell #" + std::to_string(type_)).c_str(),
              "ids must lie in 0.." + std::to_string(t.rows - 1), std::to_string(given[i]),
              "Check num_embeddings and the vocabulary.");
        }
        lists_.back().push_back(static_cast<int32_t>(given[i]));
      }
    }
    return view(t, 0, lists_.back().data(), m_, col, width);
  }

  // The matrix that a place stands for; count -1 where there is none.
  View place(const int64_t* p) {
    const auto where = static_cast<Where>(p[0]);
    const int64_t slot = p[1], col = p[3], width = p[4];
    switch (where) {
      case Where::operand:
      case Where::d_operand: {
        expect(slot >= 0 && slot < slots_, "an operand that is not there");
        const int64_t* o = operand_of(batch_[0], slot);
        expect(o[0] == 0 || o[0] == 1 || o[0] == 3, "an operand without rows");
        const Table* t = of_class(o[1], (o[0] == 3 ? 2 : 0) + (where == Where::d_operand));
        if (t == nullptr) {
          expect(where == Where::d_operand, "a class without a table");
          return {nullptr, 0, nullptr, 0, -1, ScalarType::Float};
        }
        const auto [first, list] = rows_of(slot);
        int64_t count = 0;
        for (const int64_t* record : batch_) {
          count += operand_of(record, slot)[3];
        }
        return view(*t, first, list, count, col, width);
      }
      case Where::result:
      case Where::d_result: {
        expect(slot >= 0 && slot < outs_, "a result that is not there");
        expect(batch_.size() == 1, "results of several batches");
        const int64_t* r = result_of(batch_[0], slot);
        const Table* t = of_class(r[0], where == Where::d_result);
        expect(t != nullptr, "a class without a table");
        return view(*t, r[1], nullptr, m_, col, width);
      }
      case Where::kept:
      case Where::d_kept:
        return view(tensor(p[2]), base_, nullptr, m_, col, width);
      case Where::room:
        return view(tensor(p[2]), 0, nullptr, m_, col, width);
      case Where::named:
        expect(slot >= 0 && slot < slots_, "an operand that is not there");
        return named(tensor(p[2]), slot, col, width);
    }
    broken("an unknown place");
  }

  static Operand left(const View& v) {
    return {v.data, v.stride, v.rows, v.width};
  }

  // Operands of a product from `count` places.
  int64_t parts(const int64_t* p, int64_t count, ScalarType type, int64_t m, std::vector<Operand>& out) {
    int64_t k = 0;
    out.clear();
    for (int64_t i = 0; i < count; ++i) {
      const View v = place(p + kPlace * i);
      expect(v.type == type && v.count == m, "operands of a product that differ in dtype or rows");
      out.push_back(left(v));
      k += v.width;
    }
    return k;
  }

  static Storage storage(ScalarType type) {
    const auto found = storage_of(type);
    expect(found.has_value(), "a dtype without kernels");
    return *found;
  }

  void linear(const View& out, int64_t weight, int64_t bias, const int64_t* p, int64_t count) {
    std::vector<Operand> operands;
    const int64_t k = parts(p, count, out.type, out.count, operands), n = out.width;
    const Storage s = storage(out.type);
    const Table& w = tensor(weight);
    expect(
        out.rows == nullptr && w.dims == 3 && w.rows == panels_of(n, s) && w.cols == k && w.depth == panel_width(s) &&
            w.type == compute_type(s),
        "a weight of another shape or dtype");
    const void* add = nullptr;
    if (bias >= 0) {
      const Table& b = tensor(bias);
      expect(b.dims == 1 && b.cols == w.rows * w.depth && b.type == w.type, "a bias of another shape or dtype");
      add = b.data;
    }
    if (out.count > 0 && n > 0) {
      run_linear({out.count, n, k, operands.data(), count, w.data, add, out.data, out.stride}, s);
    }
  }

  static void add(const View& to, const View& from) {
    using torch::headeronly::BFloat16, torch::headeronly::Half;
    expect(to.count == from.count && to.width == from.width, "sums of other shapes");
    if (to.type == ScalarType::Float && from.type == ScalarType::Half) {  // gradients of parameters are kept wide
      return add_rows<float, Half>(to, from);
    }
    if (to.type == ScalarType::Float && from.type == ScalarType::BFloat16) {
      return add_rows<float, BFloat16>(to, from);
    }
    expect(to.type == from.type, "sums of other dtypes");
    switch (to.type) {
      case ScalarType::Float:
        return add_rows<float>(to, from);
      case ScalarType::Double:
        return add_rows<double>(to, from);
      case ScalarType::Half:
        return add_rows<Half>(to, from);
      case ScalarType::BFloat16:
        return add_rows<BFloat16>(to, from);
      default:
        broken("a dtype without kernels");
    }
  }

  static void copy(const View& to, const View& from) {
    expect(to.type == from.type && to.count == from.count && to.width == from.width, "copies of other shapes or dtypes");
    expect(to.rows == nullptr, "a copy to scattered rows");
    const auto bytes = static_cast<int64_t>(c10_size(to.type));
    for (int64_t i = 0; i < to.count && to.width > 0; ++i) {
      const int64_t source = from.rows == nullptr ? i : from.rows[i];
      std::memcpy(
          to.data + i * to.stride * bytes, from.data + source * from.stride * bytes,
          static_cast<size_t>(to.width * bytes));
    }
  }

  static int64_t c10_size(ScalarType type) {
    return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
  }

  void cell(const int64_t* a) {
    const int64_t which = a[0], h = a[1], count = a[2];
    expect(which >= 0 && which < static_cast<int64_t>(Cell::count) && count <= 12, "an unknown cell");
    Place places[12];
    ScalarType type = ScalarType::Float;
    for (int64_t i = 0; i < count; ++i) {
      const View v = place(a + 3 + kPlace * i);
      type = i == 0 ? v.type : type;
      expect(v.type == type && v.count == m_ && kParts[which][i] * h == v.width, "arguments that do not fit a cell");
      places[i] = {v.data, v.stride, v.rows, 0};
    }
    expect(count == 12 || kParts[which][count] == 0, "a cell with too few arguments");
    run_cell(static_cast<Cell>(which), storage(type), places, m_, h);
  }

  const int64_t* list_starts(int64_t slot) const {
    const int64_t* o = operand_of(batch_[0], slot);
    expect(o[0] == 1, "a list that is none");
    const int64_t* from = starts.range(o[5], m_ + 1);
    for (int64_t i = 0; i < m_; ++i) {
      expect(from[i] >= 0 && from[i] <= from[i + 1] && from[i + 1] <= o[3], "lists that overlap");
    }
    return from;
  }

  void sum(const View& to, const int64_t* p) {
    View from = place(p);
    const int64_t* begin = list_starts(p[1]);
    if (from.rows == nullptr) {  // the kernel reads numbers
      lists_.emplace_back(from.count);
      for (int64_t i = 0; i < from.count; ++i) {
        lists_.back()[i] = static_cast<int32_t>(i);
      }
      from.rows = lists_.back().data();
    }
    expect(from.type == to.type && from.width == to.width, "sums of other shapes or dtypes");
    run_rows_sum(
        {from.data, from.stride, from.width, begin, from.rows, begin[m_], to.data, to.stride, false}, m_,
        storage(to.type));
  }

  void spread(const int64_t* p, const View& from) {
    View to = place(p);
    if (to.count < 0) {
      return;
    }
    const int64_t* begin = list_starts(p[1]);
    lists_.emplace_back();
    for (int64_t i = 0; i < m_; ++i) {
      lists_.back().insert(lists_.back().end(), begin[i + 1] - begin[i], static_cast<int32_t>(i));
    }
    add(to, {from.data, from.stride, lists_.back().data(), from.width, to.count, from.type});
  }

  void weight_grad(const int64_t* a) {
    const View grad = place(a);
    const Table& dweight = tensor(a[kPlace]);
    std::vector<Operand> operands;
    const int64_t count = a[kPlace + 2];
    const int64_t k = parts(a + kPlace + 3, count, grad.type, grad.count, operands);
    const Storage s = storage(grad.type);
    expect(grad.rows == nullptr, "gradients that are scattered");
    expect(
        dweight.dims == 2 && dweight.rows == grad.width && dweight.cols == k && dweight.type == compute_type(s),
        "a weight gradient of another shape or dtype");
    void* dbias = nullptr;
    if (a[kPlace + 1] >= 0) {
      const Table& b = tensor(a[kPlace + 1]);
      expect(b.dims == 1 && b.cols == grad.width && b.type == dweight.type, "a bias gradient of another shape or dtype");
      dbias = b.data;
    }
    run_wgrad(
        {grad.count, grad.width, k, grad.data, grad.stride, operands.data(), count, dweight.data, dweight.stride, dbias},
        s);
  }

  void run(Section section) {
    const int64_t begin = code.at(kHead + kTypeHead * type_ + 1 + static_cast<int64_t>(section));
    expect(begin >= 0, "a section that is not there");
    const int64_t length = code.at(begin);
    const int64_t* at = code.range(begin + 1, length);
    for (const int64_t* end = at + length; at < end; at += at[0]) {
      expect(at[0] >= 2 && at + at[0] <= end, "an instruction of another length");
      lists_.clear();
      step(static_cast<Step>(at[1]), at + 2);
    }
  }

  void step(Step what, const int64_t* a) {
    switch (what) {
      case Step::linear:
        return linear(place(a), a[kPlace], a[kPlace + 1], a + kPlace + 3, a[kPlace + 2]);
      case Step::linear_add: {
        const View to = place(a);
        if (to.count < 0) {
          return;
        }
        const View room = place(a + kPlace);
        linear(room, a[2 * kPlace], -1, a + 2 * kPlace + 2, a[2 * kPlace + 1]);
        return add(to, room);
      }
      case Step::cell:
        return cell(a);
      case Step::add: {
        const View to = place(a);
        return to.count < 0 ? void() : add(to, place(a + kPlace));
      }
      case Step::copy:
        return copy(place(a), place(a + kPlace));
      case Step::sum:
        return sum(place(a), a + kPlace);
      case Step::spread:
        return spread(a, place(a + kPlace));
      case Step::weight_grad:
        return weight_grad(a);
    }
    broken("an unknown instruction");
  }

  static void zero(const View& v) {
    const int64_t bytes = c10_size(v.type);
    for (int64_t i = 0; i < v.count; ++i) {
      std::memset(v.data + i * v.stride * bytes, 0, static_cast<size_t>(v.width * bytes));
    }
  }

  // After a batch its results' gradients are used up: another backward starts from nothing. A batch that no gradient
  // reaches leaves zeros to the weights.
  void clear(bool skipped) {
    if (!skipped) {
      for (int64_t o = 0; o < outs_; ++o) {
        if (of_class(result_of(batch_[0], o)[0], 1) != nullptr) {
          const int64_t where[kPlace] = {static_cast<int64_t>(Where::d_result), o, -1, 0, -1};
          zero(place(where));
        }
      }
      return;
    }
    const int64_t begin = code.at(kHead + kTypeHead * type_ + 1 + static_cast<int64_t>(Section::finish));
    if (begin < 0) {
      return;
    }
    const int64_t* at = code.range(begin + 1, code.at(begin));
    for (const int64_t* end = at + code.at(begin); at < end; at += at[0]) {
      expect(at[0] >= 2 && at + at[0] <= end, "an instruction of another length");
      if (static_cast<Step>(at[1]) == Step::weight_grad || static_cast<Step>(at[1]) == Step::add) {
        const int64_t* from = at + 2 + (static_cast<Step>(at[1]) == Step::add ? kPlace : 0);
        if (static_cast<Where>(from[0]) == Where::d_kept) {
          zero(place(from));
        }
      }
    }
  }
};

void batches_run_cpu(
    const Tensor& code, const Tensor& classes, const Tensor& records, const Tensor& offsets, const Tensor& rows,
    const Tensor& numbers, const Tensor& starts, const Tensor& makers, const Tensor& reached,
    std::vector<Tensor> tensors, int64_t section, int64_t begin, int64_t end, int64_t first_batch) {
  Runner run;
  run.code = array_of<int64_t>(code, ScalarType::Long, "code");
  run.classes = array_of<int64_t>(classes, ScalarType::Long, "classes");
  run.records = array_of<int64_t>(records, ScalarType::Long, "records");
  run.offsets = array_of<int64_t>(offsets, ScalarType::Long, "offsets");
  run.rows = array_of<int32_t>(rows, ScalarType::Int, "rows");
  run.numbers = array_of<int64_t>(numbers, ScalarType::Long, "numbers");
  run.starts = array_of<int64_t>(starts, ScalarType::Long, "starts");
  run.makers = array_of<int32_t>(makers, ScalarType::Int, "makers");
  const auto marks = array_of<uint8_t>(reached, ScalarType::Byte, "reached");
  run.reached = const_cast<uint8_t*>(marks.data);
  run.reached_size = marks.size;
  run.first_batch = first_batch;
  run.tables.reserve(tensors.size());
  for (size_t i = 0; i < tensors.size(); ++i) {
    require_tensor(tensors[i], kWho, "tensors");
    run.tables.push_back(table_of(tensors[i]));
  }
  EDGEOPS_CHECK(
      begin >= 0 && begin <= end && end < run.offsets.size && first_batch >= 0, ValueError, kWho,
      "begin and end must be batches of the flush", std::to_string(begin) + " and " + std::to_string(end),
      "Pass indices into offsets.");
  switch (static_cast<Section>(section)) {
    case Section::forward:
      return run.forward(begin, end);
    case Section::backward:
      return run.backward(begin, end);
    case Section::finish:
      return run.finish(begin, end);
  }
  EDGEOPS_CHECK(false, ValueError, kWho, "section must be 0, 1 or 2", std::to_string(section), "Pass one of them.");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_batches_run", TORCH_BOX(&batches_run_cpu));
}

}  // namespace edgeops::batching
