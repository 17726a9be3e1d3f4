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
#include "decisions.h"
#include "linear.h"
#include "program_batches.h"

namespace edgeops::batching {
namespace {

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
    {1},                                // tanh_fwd
    {1, 1, 1},                          // tanh_bwd
    {1},                                // sigmoid_fwd
    {1, 1, 1},                          // sigmoid_bwd
    {1},                                // relu_fwd
    {1, 1, 1},                          // relu_bwd
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

class Runner : public Batches {
 public:
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

  // Weights of the types [begin, end).
  void prepare(Section section, int64_t begin, int64_t end) {
    expect(end <= types(), "types that are not there");
    for (int64_t t = begin; t < end; ++t) {
      if (code.at(kHead + kTypeHead * t + 1 + static_cast<int64_t>(section)) >= 0) {
        type_ = t;
        batch_.clear();
        m_ = base_ = slots_ = outs_ = 0;
        first_tensor_ = code.at(kHead + kTypeHead * t);
        run(section);
      }
    }
  }

  // What is left for the end, once a type over all its calls.
  void finish(int64_t begin, int64_t end) {
    const int64_t count = types();
    std::vector<std::vector<const int64_t*>> of_type(count);
    for (int64_t b = begin; b < end; ++b) {
      take(b);
      of_type[type_].push_back(batch_[0]);
    }
    for (int64_t t = 0; t < count; ++t) {
      if (of_type[t].empty() || code.at(kHead + kTypeHead * t + 3) < 0) {
        continue;
      }
      type_ = t;
      batch_ = of_type[t];
      copies_.clear();
      m_ = 0;
      base_ = batch_[0][3];
      expect(base_ == 0, "a type whose first batch is missing");
      for (const int64_t* record : batch_) {
        expect(record[4] == batch_[0][4] && record[5] == batch_[0][5], "batches of a type that differ in operands");
        m_ += record[2];
      }
      slots_ = batch_[0][4];
      outs_ = batch_[0][5];
      first_tensor_ = code.at(kHead + kTypeHead * t);
      run(Section::finish);
    }
  }

 private:
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

  void linear(const View& out, int64_t weight, int64_t bias, const int64_t* p, int64_t count, bool on = false) {
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
      run_linear({out.count, n, k, operands.data(), count, w.data, add, out.data, out.stride, on}, s);
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
    expect(
        to.type == from.type && to.count == from.count && to.width == from.width, "copies of other shapes or dtypes");
    expect(to.rows == nullptr, "a copy to scattered rows");
    const auto bytes = size_of(to.type);
    for (int64_t i = 0; i < to.count && to.width > 0; ++i) {
      const int64_t source = from.rows == nullptr ? i : from.rows[i];
      std::memcpy(
          to.data + i * to.stride * bytes, from.data + source * from.stride * bytes,
          static_cast<size_t>(to.width * bytes));
    }
  }

  void cell(const int64_t* a) {
    const int64_t which = a[0], h = a[1], count = a[2];
    expect(which >= 0 && which < static_cast<int64_t>(Cell::count) && count <= 12, "an unknown cell");
    expect(h >= 0 && h <= kMostRows, "a width that cannot be");
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
    expect(slot >= 0 && slot < slots_, "an operand that is not there");
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

  // `a` are the places of what scores become, and of the loss; the gradient's stands before them.
  void cross_entropy(const int64_t* a, bool backward) {
    const View dscores = backward ? place(a) : View{};
    a += backward ? kPlace : 0;
    const View scores = place(a), loss = place(a + kPlace);
    expect(scores.rows == nullptr && loss.rows == nullptr && dscores.rows == nullptr, "losses that are scattered");
    expect(
        scores.count == m_ && loss.count == m_ && loss.width == 1 && loss.type == scores.type &&
            (!backward || (dscores.count == m_ && dscores.width == scores.width && dscores.type == scores.type)),
        "losses of other shapes or dtypes");
    const int32_t* labels = integers(a[2 * kPlace], scores.width, "labels", "Check the number of classes.");
    run_cross_entropy(
        {scores.width, scores.data, scores.stride, labels, loss.data, loss.stride, dscores.data, dscores.stride}, m_,
        backward, storage(scores.type));
  }

  // `a` are the places of scores and of the loss; the gradient's stands before them.
  void decisions(const int64_t* a, bool backward) {
    const View dscores = backward ? place(a) : View{};
    if (backward && dscores.count < 0) {
      return;
    }
    a += backward ? kPlace : 0;
    const View scores = place(a), loss = place(a + kPlace);
    expect(
        scores.count == m_ && loss.count == m_ && loss.width == 1 && loss.type == scores.type &&
            (!backward || (dscores.count == m_ && dscores.width == scores.width && dscores.type == scores.type)),
        "decisions of other shapes or dtypes");
    const int64_t slot = a[2 * kPlace];
    expect(slot >= 0 && slot <= slots_ && scores.width == slots_ - slot, "decisions without integers");
    Taken taken;
    for (int64_t k = slot; k < slots_; ++k) {
      taken.push_back(integers(k, 2, "decisions", "Give 1 for what was decided, 0 for what was not."));
    }
    by_type(scores.type, [&]<class S, class T>(S, T) {
      backward ? decide_grad<S, T>(dscores, scores, loss, taken) : decide<S, T>(scores, loss, taken);
    });
  }

  void weight_grad(const int64_t* a) {
    const View grad = place(a);
    const Table& dweight = tensor(a[kPlace]);
    std::vector<Operand> operands;
    const int64_t fresh = a[kPlace + 2], count = a[kPlace + 3];
    const int64_t k = parts(a + kPlace + 4, count, grad.type, grad.count, operands);
    const Storage s = storage(grad.type);
    expect(grad.rows == nullptr, "gradients that are scattered");
    expect(
        dweight.dims == 2 && dweight.rows == grad.width && dweight.cols == k && dweight.type == compute_type(s),
        "a weight gradient of another shape or dtype");
    void* dbias = nullptr;
    if (a[kPlace + 1] >= 0) {
      const Table& b = tensor(a[kPlace + 1]);
      expect(
          b.dims == 1 && b.cols == grad.width && b.type == dweight.type, "a bias gradient of another shape or dtype");
      dbias = b.data;
      if ((fresh & 2) != 0) {
        std::memset(dbias, 0, static_cast<size_t>(b.cols * b.bytes));
      }
    }
    if (grad.count == 0) {
      for (int64_t i = 0; (fresh & 1) != 0 && i < dweight.rows; ++i) {
        std::memset(dweight.data + i * dweight.stride * dweight.bytes, 0, static_cast<size_t>(k * dweight.bytes));
      }
      return;
    }
    run_wgrad(
        {grad.count, grad.width, k, grad.data, grad.stride, operands.data(), count, dweight.data, dweight.stride, dbias,
         (fresh & 1) != 0},
        s);
  }

  void pack(const int64_t* a) {
    const Table& to = tensor(a[0]);
    std::vector<PackPart> parts;
    int64_t n = -1, k = 0;
    ScalarType type = ScalarType::Float;
    for (int64_t i = 0; i < a[1]; ++i) {
      const int64_t* part = a + 2 + 4 * i;
      const Table& w = tensor(part[0]);
      const int64_t first = part[1], columns = part[2];
      expect(
          w.dims == 2 && first >= 0 && columns >= 0 && first <= w.cols && columns <= w.cols - first,
          "columns outside of a weight");
      type = i == 0 ? w.type : type;
      const bool turned = part[3] != 0;
      n = i == 0 ? (turned ? columns : w.rows) : n;
      expect(n == (turned ? columns : w.rows) && w.type == type, "weights that differ in rows or dtype");
      parts.push_back(
          {w.data + first * w.bytes, turned ? w.rows : columns, turned ? 1 : w.stride, turned ? w.stride : 1});
      k += parts.back().k;
    }
    const Storage s = storage(type);
    expect(
        !parts.empty() && to.dims == 3 && to.rows == panels_of(n, s) && to.cols == k && to.depth == panel_width(s) &&
            to.type == compute_type(s),
        "a packed weight of another shape or dtype");
    run_pack(parts, n, to.data, s);
  }

  template <class T, class S>
  void bias(const Table& to, const int64_t* parts, int64_t count) const {
    T* sum = reinterpret_cast<T*>(to.data);
    std::memset(to.data, 0, static_cast<size_t>(to.cols * to.bytes));
    for (int64_t i = 0; i < count; ++i) {
      const Table& b = tensor(parts[i]);
      expect(b.dims == 1 && b.cols <= to.cols && b.bytes == static_cast<int64_t>(sizeof(S)), "biases that do not fit");
      for (int64_t j = 0; j < b.cols; ++j) {
        sum[j] += static_cast<T>(reinterpret_cast<const S*>(b.data)[j]);
      }
    }
  }

  void bias(const int64_t* a) const {
    const Table& to = tensor(a[0]);
    expect(a[1] > 0, "no biases");
    const ScalarType type = tensor(a[2]).type;
    expect(to.dims == 1 && to.type == compute_type(storage(type)), "a bias of another shape or dtype");
    for (int64_t i = 0; i < a[1]; ++i) {
      expect(tensor(a[2 + i]).type == type, "biases of several dtypes");
    }
    switch (type) {
      case ScalarType::Float:
        return bias<float, float>(to, a + 2, a[1]);
      case ScalarType::Double:
        return bias<double, double>(to, a + 2, a[1]);
      case ScalarType::Half:
        return bias<float, torch::headeronly::Half>(to, a + 2, a[1]);
      default:
        return bias<float, torch::headeronly::BFloat16>(to, a + 2, a[1]);
    }
  }

  // Whether `n` integers are what a step takes.
  static bool fits(Step what, const int64_t* a, int64_t n) {
    const auto counted = [&](int64_t head, int64_t each) {  // the last integer of the head counts what follows
      return n >= head && a[head - 1] >= 0 && a[head - 1] <= n && n == head + each * a[head - 1];
    };
    switch (what) {
      case Step::linear:
        return counted(kPlace + 3, kPlace);
      case Step::weight_grad:
        return counted(kPlace + 4, kPlace);
      case Step::linear_add:
        return counted(2 * kPlace + 2, kPlace);
      case Step::cell:
        return counted(3, kPlace);
      case Step::add:
      case Step::copy:
      case Step::sum:
      case Step::spread:
        return n == 2 * kPlace;
      case Step::pack:
        return counted(2, 4);
      case Step::bias:
        return counted(2, 1);
      case Step::cross_entropy:
      case Step::decide:
        return n == 2 * kPlace + 1;
      case Step::cross_entropy_grad:
      case Step::decide_grad:
        return n == 3 * kPlace + 1;
      case Step::linear_on:
        return counted(kPlace + 2, kPlace);
    }
    return false;
  }

  // Calls act(step, arguments) for the instructions of a section.
  template <class Act>
  void each_step(Section section, const Act& act) {
    const int64_t begin = code.at(kHead + kTypeHead * type_ + 1 + static_cast<int64_t>(section));
    if (begin < 0) {
      return;
    }
    const int64_t length = code.at(begin);
    const int64_t* at = code.range(begin + 1, length);
    for (const int64_t* end = at + length; at < end; at += at[0]) {
      expect(end - at >= 2 && at[0] >= 2 && at[0] <= end - at, "an instruction of another length");
      expect(fits(static_cast<Step>(at[1]), at + 2, at[0] - 2), "an instruction of another length");
      act(static_cast<Step>(at[1]), at + 2);
    }
  }

  void run(Section section) {
    each_step(section, [&](Step what, const int64_t* a) {
      lists_.clear();
      step(what, a);
    });
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
      case Step::pack:
        return pack(a);
      case Step::bias:
        return bias(a);
      case Step::cross_entropy:
      case Step::cross_entropy_grad:
        return cross_entropy(a, what == Step::cross_entropy_grad);
      case Step::linear_on:
        return linear(place(a), a[kPlace], -1, a + kPlace + 2, a[kPlace + 1], true);
      case Step::decide:
      case Step::decide_grad:
        return decisions(a, what == Step::decide_grad);
    }
    broken("an unknown instruction");
  }

  static void zero(const View& v) {
    const int64_t bytes = size_of(v.type);
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
    each_step(Section::finish, [&](Step what, const int64_t* a) {
      if (what == Step::weight_grad || what == Step::add) {
        const int64_t* from = what == Step::add ? a + kPlace : a;
        if (static_cast<Where>(from[0]) == Where::d_kept) {
          zero(place(from));
        }
      }
    });
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
    require_tensor(tensors[i], kRun, "tensors");
    run.tables.push_back(table_of(tensors[i]));
  }
  EDGEOPS_CHECK(
      begin >= 0 && begin <= end && end < run.offsets.size && first_batch >= 0, ValueError, kRun,
      "begin and end must be batches of the flush", std::to_string(begin) + " and " + std::to_string(end),
      "Pass indices into offsets.");
  switch (static_cast<Section>(section)) {
    case Section::forward:
      return run.forward(begin, end);
    case Section::backward:
      return run.backward(begin, end);
    case Section::finish:
      return run.finish(begin, end);
    case Section::prepare_forward:
    case Section::prepare_backward:
      return run.prepare(static_cast<Section>(section), begin, end);
  }
  EDGEOPS_CHECK(
      false, ValueError, kRun, "section must be 0, 1, 2, 3 or 4", std::to_string(section), "Pass one of them.");
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(edgeops, CPU, m) {
  m.impl("_batches_run", TORCH_BOX(&batches_run_cpu));
}

}  // namespace edgeops::batching
